"""Configs: strict reading, exact round trips, and no torch on the way."""

import dataclasses
import json
from pathlib import Path

import pytest

from refine.config import from_mapping, to_mapping
from refine.errors import RefineError
from refine.modeling.config import ModelConfig, OcclusionConfig
from refine.training.config import OptimConfig, RunConfig, load_run, parse_run

DATA = [f"--data.train.{name}=x" for name in ("images", "json", "segments")]


def test_defaults_are_the_papers_schedule() -> None:
    config = parse_run(DATA)
    assert isinstance(config, RunConfig)
    assert (config.optim.lr, config.optim.batch_size, config.optim.max_steps) == (0.02, 16, 180_000)
    assert config.data.val is None


def test_yaml_then_override(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(
        "model: {ibpp: {iterations: 1}, backbone: {name: resnet18}}\n"
        "data: {train: {images: a, json: b, segments: c}, val: {kind: cityscapes, root: r, split: val}}\n"
        "optim: {lr: 0.5, ema: 0.99}\n"
    )
    config = load_run(path, ["--optim.lr=0.25"])
    assert (config.model.ibpp.iterations, config.model.backbone.name) == (1, "resnet18")
    assert (config.optim.lr, config.optim.ema) == (0.25, 0.99)
    assert config.data.val is not None
    assert config.data.val.root == "r"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--optim.learning_rate=1"], "optim.learning_rate"),
        (["--optim.lr=fast"], "optim.lr"),
        (["--optim.name=adam"], "optim.name"),
        (["--model.backbone.norm=batch"], "model.backbone.norm"),
        (["--optim.batch_size=0"], "optim.batch_size"),
        (["--optim.ema=1.5"], "optim.ema"),
        (["--optim.milestones=[5, 3]"], "optim.milestones"),
        (["--data.val.kind=coco"], "data.val.images"),
        (["--augment.short=[]"], "augment.short"),
        (["--augment.crop=[0, 64]"], "augment.crop"),
        (["--augment.jitter=[0, 1]"], "augment.jitter"),
    ],
)
def test_errors_name_the_field(arguments: list[str], named: str) -> None:
    with pytest.raises(RefineError, match=named.replace(".", r"\.")):
        parse_run([*DATA, *arguments])


def test_bases_come_first_in_their_order(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "data.yaml").write_text(
        "base: ../optim.yaml\ndata: {train: {images: a, json: b, segments: c}}\noptim: {lr: 0.2}\n"
    )
    (tmp_path / "optim.yaml").write_text("optim: {lr: 0.1, momentum: 0.5, weight_decay: 0.5}\n")
    (tmp_path / "last.yaml").write_text("optim: {momentum: 0.6}\n")
    (tmp_path / "run.yaml").write_text("base: [deep/data.yaml, last.yaml]\noptim: {weight_decay: 0.7}\n")
    config = load_run(tmp_path / "run.yaml", ["--optim.gamma=0.3"])
    assert config.data.train.images == "a"
    assert (config.optim.lr, config.optim.momentum, config.optim.weight_decay) == (0.2, 0.6, 0.7)
    assert config.optim.gamma == 0.3


@pytest.mark.parametrize(
    ("base", "said"), [("3", "expected a path"), ("gone.yaml", "no such file"), ("run.yaml", "its own base")]
)
def test_base_that_cannot_be_used(tmp_path: Path, base: str, said: str) -> None:
    (tmp_path / "run.yaml").write_text(f"base: {base}\n")
    with pytest.raises(RefineError, match=rf"run\.yaml.* base: .*{said}"):
        load_run(tmp_path / "run.yaml")


def test_error_of_missing_data_names_the_field() -> None:
    with pytest.raises(RefineError, match=r"data\.train\.images"):
        parse_run([])


def test_unknown_field_in_yaml(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("model: {backbon: {name: resnet18}}\n")
    with pytest.raises(RefineError, match=r"model\.backbon"):
        load_run(path)


def test_round_trip_through_json() -> None:
    config = ModelConfig(occlusion=OcclusionConfig(cues=["mask"]))
    config.rpn.pre_nms_top_n = (7, 5)
    again = from_mapping(ModelConfig, json.loads(json.dumps(to_mapping(config))), "config.json")
    assert again == config
    assert from_mapping(OptimConfig, {}, "x") == OptimConfig()


def test_mapping_errors_name_source_and_field() -> None:
    with pytest.raises(RefineError, match=r"config\.json: .*backbone\.nme"):
        from_mapping(ModelConfig, {"backbone": {"nme": "x"}}, "config.json")


def test_every_field_is_documented() -> None:
    def walk(cls: type) -> None:
        for f in dataclasses.fields(cls):
            assert f.name in (cls.__doc__ or ""), f"{cls.__name__}.{f.name}"
            value = getattr(cls(), f.name)
            if dataclasses.is_dataclass(value):
                walk(type(value))

    walk(RunConfig)
