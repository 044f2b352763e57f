"""All shipped configs."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from refine.config import to_mapping
from refine.data.config import DatasetConfig
from refine.modeling.model import PanopticModel
from refine.structures import Targets
from refine.training.config import DataConfig, RunConfig, load_run, parse_run
from refine.training.optim import build_optimizer

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
STAGES = sorted(CONFIGS.glob("*/*_stage.yaml"))
FILES = sorted(
    path
    for path in CONFIGS.rglob("*.yaml")
    if path not in STAGES and path.stem != "base" and path.parent.name != "models"
)
FULL_SIZE = [path for path in FILES if path.parent.name == "coco"]
DATA = [f"--data.train.{field}=x" for field in ("images", "json", "segments")]
CLASSES = {"coco": (80, 133), "cityscapes": (8, 19), "configs": (8, 14)}


def name(path: Path) -> str:
    return path.relative_to(CONFIGS).with_suffix("").as_posix()


@pytest.mark.parametrize("path", FILES, ids=name)
def test_parses_and_builds(path):
    # nuclei.yaml is for any data: the user gives the paths.
    config = load_run(path, DATA if path.stem == "nuclei" else ())
    with torch.device("meta" if not config.model.backbone.name.startswith("timm/") else "cpu"):
        model = PanopticModel(config.model, *CLASSES[path.parent.name])
    assert any(p.requires_grad for p in model.parameters())
    if path.parent.name == "configs":
        return
    # The optimizer of the papers; the learning rate scales with the batch size.
    assert (config.optim.name, config.optim.momentum, config.optim.weight_decay) == ("sgd", 0.9, 1e-4)
    assert config.optim.batch_size == config.optim.reference_batch_size
    assert config.optim.milestones[-1] < config.optim.max_steps


def flat(values: dict, prefix: str = "") -> dict[str, object]:
    """Flatten nested mappings to one with dotted names."""
    found: dict[str, object] = {}
    for name, value in values.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found


@pytest.mark.parametrize("path", [path for path in FILES if path.parent != CONFIGS], ids=name)
def test_composed_configs_equal_written_out_ones(path):
    """The expected values were read from configs without bases."""
    expected = json.loads(Path(__file__).with_name("written_out.json").read_text())[name(path)]
    default = flat(to_mapping(RunConfig(data=DataConfig(val=DatasetConfig()))))
    composed = flat(to_mapping(load_run(path)))
    assert {k: v for k, v in composed.items() if default.get(k, "absent") != v} == expected


@pytest.mark.parametrize("path", [path for path in FULL_SIZE if "cascade" not in path.stem], ids=name)
def test_the_papers_schedule(path):
    optim = load_run(path).optim
    assert (optim.lr, optim.batch_size, optim.max_steps) == (0.02, 16, 180_000)
    assert optim.milestones == [120_000, 160_000]


@pytest.mark.parametrize("stage", STAGES, ids=name)
def test_second_stages_extend_the_first(stage):
    config = parse_run(["--config", str(stage.with_name("refine_r50_gn.yaml")), "--config", str(stage)])
    assert config.optim.train_only == ["occlusion"]
    assert config.model.occlusion is not None
    assert config.model.ibpp.iterations == 3
    assert config.data.train.images == "data/coco/train2017"


def scene(things: int, classes: int) -> tuple[torch.Tensor, Targets]:
    """Return an image of two thing squares in front of two stuff classes, and its targets."""
    image = torch.full((3, 128, 160), 60, dtype=torch.uint8)
    index = torch.zeros(128, 160, dtype=torch.int32)
    index[:, 80:] = 1
    image[:, :, 80:] = 120
    index[20:90, 10:70], index[40:110, 90:150] = 2, 3
    image[0, 20:90, 10:70], image[1, 40:110, 90:150] = 250, 250
    labels = torch.tensor([things, classes - 1, 0, things - 1])
    return image, Targets.from_panoptic(index, labels, torch.zeros(4, dtype=torch.bool), things)


@pytest.mark.slow
@pytest.mark.parametrize("path", FULL_SIZE, ids=name)
def test_full_networks_learn(path):
    """Forward and backward passes and four updates at full width on one small image.

    With random weights and fixed statistics, activations would grow from block to block, so residual branches
    start small. The learning rate is scaled to one image. Fewer boxes are sampled to save time.
    """
    config = load_run(path)
    config.model.box_head.samples = 32
    things, classes = CLASSES["coco"]
    model = PanopticModel(
        replace(config.model, backbone=replace(config.model.backbone, weights=None)), things, classes
    )
    for module_name, parameter in model.backbone.named_parameters():
        if module_name.endswith("bn3.weight"):
            torch.nn.init.constant_(parameter, 0.1)
    for module_name, buffer in model.backbone.named_buffers():
        if module_name.endswith("bn3.weight"):  # FrozenBatchNorm's
            buffer.fill_(0.1)
    image, targets = scene(things, classes)
    config.optim.batch_size = 1
    optimizer = build_optimizer(model, config.optim)
    totals = []
    for _ in range(5):
        torch.manual_seed(0)  # the same samples of anchors and boxes
        losses = model.loss(model.image_batch([image]), [targets])
        total = torch.stack(list(losses.values())).sum()
        assert total.isfinite()
        totals.append(total.item())
        optimizer.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.optim.clip_norm)
        optimizer.step()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    assert totals[-1] < totals[0], totals
