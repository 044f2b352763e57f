"""Configs: strict parsing, bases, ranges and round trips."""

import dataclasses
import json
from pathlib import Path

import pytest

from refine.bounds import check_bounds
from refine.config import from_mapping, to_mapping
from refine.errors import RefineError
from refine.modeling.config import ModelConfig, OcclusionConfig
from refine.training.config import OptimConfig, RunConfig, check_run, load_run, parse_run
from refine.training.config_files import find_config

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


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("model: [1]", "model: expected a mapping, got [1]"),
        ("optim: {lr: 1" + 400 * "0" + "}", "line 1: a number of 401 digits"),
        ("optim: {lr: 2001-99-99}", "month must be in"),
        ('optim: {lr: !!int ""}', "is not valid YAML"),
        ("a: [", "is not valid YAML"),
    ],
)
def test_values_that_no_field_takes(tmp_path: Path, text: str, named: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(RefineError) as error:
        load_run(path)
    message = str(error.value)
    assert named in message
    assert message.count(str(path)) == 1
    assert "\n" not in message


@pytest.mark.parametrize("word", ["--model=[1]", "--optim.lr=1" + 400 * "0", "--data=3", "--out=\0"])
def test_words_that_no_field_takes(word: str) -> None:
    with pytest.raises(RefineError, match=r"^(config|out)"):
        parse_run([*DATA, word])


def test_bases_are_applied_in_order_before_the_config(tmp_path: Path) -> None:
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


def test_own_configs_have_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of the working directory comes first; a base is looked for beside the file that names it."""
    monkeypatch.chdir(tmp_path)
    own = find_config("nuclei")
    assert own.parts[-2:] == ("configs", "nuclei.yaml")
    assert find_config("coco/refine_r50") == find_config("coco/refine_r50.yaml")
    assert find_config("coco/refine_r50") == own.parent / "coco/refine_r50.yaml"
    assert find_config("coco", folder=True) == own.parent / "coco"
    Path("mine.yaml").write_text("base: scenes\noptim: {max_steps: 7}\n")
    config = load_run("mine.yaml", ["--out=here"])
    assert config.optim.max_steps == 7
    assert config.model == load_run("scenes").model != RunConfig().model
    Path("nuclei").mkdir()
    assert find_config("nuclei") == own
    Path("nuclei.yaml").write_text("optim: {max_steps: 8}\n")
    assert find_config("nuclei.yaml") == Path("nuclei.yaml")
    assert find_config("nuclei") == own
    with pytest.raises(
        RefineError, match=r"^coco: no such config file \(did you mean coco/\w+\?\); .* dsb2018, nuclei"
    ):
        find_config("coco")


@pytest.mark.parametrize(
    ("base", "message"),
    [("3", "expected a path"), ("gone.yaml", "no such config file"), ("run.yaml", "its own base")],
)
def test_invalid_bases_are_reported(tmp_path: Path, base: str, message: str) -> None:
    (tmp_path / "run.yaml").write_text(f"base: {base}\n")
    with pytest.raises(RefineError, match=rf"run\.yaml.* base: .*{message}"):
        load_run(tmp_path / "run.yaml")


@pytest.mark.parametrize(
    "argument",
    [
        "optim.lr=-1",
        "optim.lr=.nan",
        "optim.lr=.inf",
        "optim.betas=[2,3]",
        "optim.betas=[0.9,1.0]",
        "optim.warmup_factor=-1",
        "optim.warmup_steps=-1",
        "optim.weight_decay=-0.1",
        "optim.momentum=1",
        "optim.gamma=0",
        "optim.clip_norm=0",
        "optim.ema=0",
        "optim.reference_batch_size=0",
        "optim.milestones=[-1]",
        "augment.color=5",
        "augment.color=-1",
        "augment.flip=7",
        "augment.copy_paste=-0.1",
        "augment.long=31",
        "augment.short=[800, 31]",
        "augment.crop=[31, 64]",
        "augment.jitter=[0.03, 1.0]",
        "augment.min_area=-1",
        "augment.jitter=[2.0,1.0]",
        "workers=-1",
        "workers=1000000",
        "threads=0",
        "seed=100000000000000000000",
        "eval.short=0",
        "eval.every=-1",
        "eval.max_images=0",
        "eval.pictures=-1",
        "log.keep=0",
        "model.divisor=0",
        "model.fpn_channels=0",
        "model.fpn_channels=100000000000000000000",
        "model.pixel_std=[0,1,1]",
        "model.pixel_mean=[.inf,1,1]",
        "model.roi_canonical_size=0",
        "model.roi_sampling=-1",
        "model.rpn.aspect_ratios=[]",
        "model.rpn.aspect_ratios=[0]",
        "model.rpn.anchor_sizes=[]",
        "model.rpn.num_convs=0",
        "model.rpn.negative_iou=0.8",
        "model.ibpp.iterations=-1",
        "model.box_head.ious=[]",
        "model.box_head.ious=[1.5]",
        "model.box_head.max_detections=0",
        "model.backbone.frozen_stages=9",
        "model.backbone.deform_stages=[2]",
        "model.losses.mask=-1",
    ],
)
def test_values_out_of_range_are_reported(argument: str) -> None:
    with pytest.raises(RefineError) as error:
        parse_run([*DATA, f"--{argument}"])
    message = str(error.value)
    assert message.startswith(argument.split("=")[0])
    assert "\n" not in message
    assert "; give " in message
    assert len(message) < 200


@pytest.mark.parametrize("text", ['out: "a\\0b"', 'data: {name: "\\udc00\\ud800"}', 'optim: {train_only: ["\\0"]}'])
def test_text_must_be_a_possible_file_name(text: str, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(RefineError, match=r"run\.yaml: .*(NUL character|escape|surrogate)"):
        load_run(tmp_path / "run.yaml", DATA)


BOMB = "a: &a [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, "over 100000 values"),
        ("optim: {milestones: &a [*a]}", "over 100000 values"),
        (f"optim: {{milestones: {'[' * 100_000}", "nested 50 levels deep"),
        ("#" * 2**21, "characters; expected at most"),
        ("optim: {lr: [", "line 1|line 2"),
        ("\0", "control characters"),
    ],
)
def test_yaml_that_is_no_config(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(RefineError, match=rf"run\.yaml: .*({message})") as error:
        load_run(path, DATA)
    assert len(str(error.value)) < 1000
    path.write_text("optim: &o {lr: 0.5}\nx: 1\n")  # aliases are allowed
    with pytest.raises(RefineError, match="x"):
        load_run(path, DATA)


def test_every_number_has_a_range() -> None:
    def walk(cls: type) -> None:
        for f in dataclasses.fields(cls):
            value = getattr(cls(), f.name)
            if dataclasses.is_dataclass(value):
                walk(type(value))
            elif "int" in str(f.type) or "float" in str(f.type):
                assert "bounds" in f.metadata or f.name == "pixel_mean", f"{cls.__name__}.{f.name}"

    for cls in (RunConfig, OcclusionConfig):
        walk(cls)
        check_bounds(cls())


def test_ranges_are_checked_in_stored_and_modified_configs() -> None:
    with pytest.raises(RefineError, match=r"^config\.json: rpn\.nms is 2\.0; give a number from 0 to 1$"):
        from_mapping(ModelConfig, {"rpn": {"nms": 2}}, "config.json")
    config = parse_run(DATA)
    config.optim.lr = None  # type: ignore[assignment]
    with pytest.raises(RefineError, match=r"^optim\.lr is null; give a value"):
        check_run(config)
    config.optim.lr = 0.02
    config.optim.lr *= -1
    with pytest.raises(RefineError, match=r"^optim\.lr is -0\.02; give at least 0$"):
        check_run(config)


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
