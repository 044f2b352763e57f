"""The network can learn eight real photographs by heart; what cannot, has a fault somewhere."""

import json

import pytest

from refine.data.build import build_dataset
from refine.data.config import DatasetConfig
from refine.files import read_json
from refine.fusion.config import FusionConfig
from refine.inference.evaluate import evaluate
from refine.inference.predictor import Predictor
from refine.modeling.config import (
    BackboneConfig,
    BoxHeadConfig,
    IBPPConfig,
    MaskHeadConfig,
    ModelConfig,
    RPNConfig,
    SemanticHeadConfig,
)
from refine.training.config import DataConfig, EvalConfig, LogConfig, OptimConfig, RunConfig
from refine.training.train import train

pytestmark = pytest.mark.slow

IMAGES = 8


def eight_photographs(root, out) -> DatasetConfig:
    """Photographs of two things and more whose smallest segment is largest, with the categories they have."""
    content = read_json(root / "panoptic_train.json")
    sizes = {image["id"]: image["height"] * image["width"] for image in content["images"]}
    things = {category["id"] for category in content["categories"] if category["isthing"]}

    def smallest(annotation) -> float:
        segments = annotation["segments_info"]
        if any(s["iscrowd"] for s in segments) or sum(s["category_id"] in things for s in segments) < 2:
            return 0.0
        return min(s["area"] for s in segments) / sizes[annotation["image_id"]]

    chosen = sorted(content["annotations"], key=smallest, reverse=True)[:IMAGES]
    used = {s["category_id"] for annotation in chosen for s in annotation["segments_info"]}
    ids = {annotation["image_id"] for annotation in chosen}
    content["annotations"] = chosen
    content["images"] = [image for image in content["images"] if image["id"] in ids]
    content["categories"] = [category for category in content["categories"] if category["id"] in used]
    out.write_text(json.dumps(content))
    return DatasetConfig(
        images=str(root / "images" / "train"), json=str(out), segments=str(root / "panoptic_train")
    )


@pytest.mark.parametrize("iterations", [0, 3])
def test_eight_photographs_by_heart(iterations, shared_dir, tmp_path):
    data = eight_photographs(shared_dir / "data" / "coco_things_512", tmp_path / "eight.json")
    config = RunConfig(
        model=ModelConfig(
            backbone=BackboneConfig("timm/tf_efficientnet_lite0", norm="frozen_bn", frozen_stages=0),
            rpn=RPNConfig(pre_nms_top_n=(500, 200), post_nms_top_n=(200, 100)),
            box_head=BoxHeadConfig(num_convs=1, conv_channels=64, fc_channels=256, samples=128),
            mask_head=MaskHeadConfig(num_convs=2, channels=64),
            semantic_head=SemanticHeadConfig(channels=64),
            ibpp=IBPPConfig(iterations, sem_convs=1, sem_channels=64),
            fpn_channels=64,
            pixel_mean=(127.0, 127.0, 127.0),
            pixel_std=(128.0, 128.0, 128.0),
        ),
        data=DataConfig(data, None, "eight photographs"),
        optim=OptimConfig(
            name="adamw",
            lr=3e-3,
            reference_batch_size=None,
            batch_size=4,
            warmup_steps=40,
            max_steps=400,
            schedule="cosine",
            clip_norm=5.0,
            weight_decay=0.0,
            backbone_lr_factor=0.3,
        ),
        eval=EvalConfig(short=192, long=256, fusion=FusionConfig(stuff_area=500)),
        log=LogConfig(every=20, tensorboard=False, checkpoint_every=10_000),
        out=str(tmp_path / "run"),
        workers=0,
        device="cpu",
    )
    config.augment.short, config.augment.long, config.augment.flip = [192], 256, 0.0
    train(config)
    evaluation = evaluate(Predictor(config.out, device="cpu"), build_dataset(data))
    assert evaluation.metrics["PQ"] >= 0.9, evaluation.metrics
