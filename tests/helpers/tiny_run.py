"""Data set of a dozen small images, a tiny network for it, and training from the command line.

python tiny_run.py FOLDER OUT [--resume] [--field.of.config=value …]
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from refine.config import to_mapping
from refine.data.config import DatasetConfig
from refine.files import write_json
from refine.fusion.config import FusionConfig
from refine.modeling.config import (
    BackboneConfig,
    BoxHeadConfig,
    IBPPConfig,
    MaskHeadConfig,
    ModelConfig,
    RPNConfig,
    SemanticHeadConfig,
)
from refine.structures import id_to_rgb
from refine.training.config import DataConfig, EvalConfig, LogConfig, OptimConfig, RunConfig, parse_run

CATEGORIES = [
    {"id": 3, "name": "red", "isthing": 1, "color": [220, 20, 60]},
    {"id": 5, "name": "green", "isthing": 1, "color": [0, 200, 90]},
    {"id": 9, "name": "ground", "isthing": 0, "color": [90, 90, 90]},
]
SIZE = (64, 96)


def write_dataset(folder: Path, count: int = 12) -> Path:
    """Write images of two or three red and green rectangles on a grey background, in COCO panoptic format."""
    generator = np.random.default_rng(5)
    images, annotations = [], []
    (folder / "images").mkdir(parents=True)
    (folder / "segments").mkdir()
    for n in range(count):
        ids = np.full(SIZE, 1, np.int32)
        pixels = generator.integers(80, 110, (*SIZE, 3), dtype=np.uint8)
        segments = [{"id": 1, "category_id": 9}]
        for k in range(2 + n % 2):
            x, y = 4 + 30 * k + int(generator.integers(6)), int(generator.integers(4, 30))
            region = np.s_[y : y + 28, x : x + 22]
            red = bool(generator.integers(2))
            ids[region], pixels[region] = k + 2, (210, 40, 40) if red else (30, 190, 60)
            segments.append({"id": k + 2, "category_id": 3 if red else 5})
        for info in segments:
            ys, xs = np.nonzero(ids == info["id"])
            box = [int(xs.min()), int(ys.min()), int(np.ptp(xs)) + 1, int(np.ptp(ys)) + 1]
            info |= {"area": len(xs), "bbox": box, "iscrowd": 0}
        name = f"{n:03d}.png"
        Image.fromarray(pixels).save(folder / "images" / name)
        Image.fromarray(id_to_rgb(ids)).save(folder / "segments" / name)
        images.append({"id": n, "file_name": name, "height": SIZE[0], "width": SIZE[1]})
        annotations.append({"image_id": n, "file_name": name, "segments_info": segments})
    content = {"images": images, "annotations": annotations, "categories": CATEGORIES}
    write_json(folder / "panoptic.json", content)
    return folder


def tiny_model(iterations: int = 1) -> ModelConfig:
    """Return the config of a network with 0.5 M parameters and no batch norm."""
    return ModelConfig(
        backbone=BackboneConfig(
            "resnet18", weights=None, frozen_stages=0, stem_width=8, res2_channels=32, width_per_group=8
        ),
        rpn=RPNConfig(
            anchor_sizes=[16.0, 24.0, 32.0, 48.0, 64.0], pre_nms_top_n=(200, 100), post_nms_top_n=(100, 50)
        ),
        box_head=BoxHeadConfig(num_convs=1, conv_channels=32, fc_channels=64, samples=64, max_detections=10),
        mask_head=MaskHeadConfig(num_convs=1, channels=32),
        semantic_head=SemanticHeadConfig(channels=32),
        ibpp=IBPPConfig(iterations=iterations, sem_convs=1, sem_channels=32),
        fpn_channels=32,
    )


def tiny_run(folder: Path, out: Path) -> RunConfig:
    """Return the config of twelve updates of four images, with a checkpoint every three."""
    files = DatasetConfig(
        images=str(folder / "images"), json=str(folder / "panoptic.json"), segments=str(folder / "segments")
    )
    config = RunConfig(
        model=tiny_model(),
        data=DataConfig(train=files, val=None, name="rectangles"),
        optim=OptimConfig(
            lr=0.01,
            reference_batch_size=None,
            batch_size=4,
            warmup_steps=4,
            milestones=[8],
            max_steps=12,
            ema=0.9,
        ),
        eval=EvalConfig(short=64, long=96, every=0, pictures=2, fusion=FusionConfig(stuff_area=64)),
        log=LogConfig(every=1, tensorboard=False, progress=False, checkpoint_every=3, keep=2),
        out=str(out),
        workers=0,
        threads=1,
        device="cpu",
    )
    config.augment.short, config.augment.long = [64], 96
    return config


def exhaustive(config: RunConfig) -> RunConfig:
    """Include every anchor and proposal in the loss, so that there is no random sampling."""
    config.model.rpn.samples = config.model.box_head.samples = 100_000
    config.model.rpn.positive_fraction = config.model.box_head.positive_fraction = 1.0
    return config


if __name__ == "__main__":
    from refine.training.train import train

    folder, out, *overrides = sys.argv[1:]
    resume = "--resume" in overrides
    base = Path(out).with_suffix(".json")
    write_json(base, to_mapping(tiny_run(Path(folder), Path(out))))
    words = [word for word in overrides if word != "--resume"]
    train(parse_run([f"--config={base}", *words]), resume=resume)
