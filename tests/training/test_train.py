"""Training runs: files, losses, initial weights, and errors."""

from pathlib import Path

import pytest
import torch
from helpers.tiny_run import exhaustive, tiny_run, write_dataset
from safetensors.torch import load_file

from refine.checkpoint.folder import load_model, save_model
from refine.errors import RefineError
from refine.files import read_json, write_json
from refine.modeling.model import PanopticModel
from refine.training.config import RunConfig
from refine.training.logs import read_log
from refine.training.train import train


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    run = tiny_run(write_dataset(tmp_path / "data"), tmp_path / "out")
    run.optim.max_steps = 2
    return run


def test_files_of_a_run(config: RunConfig) -> None:
    config.log.checkpoint_every, config.log.keep, config.optim.max_steps = 1, 2, 4
    config.log.tensorboard = True
    last = train(config)
    out = Path(config.out)
    assert sorted(p.name for p in out.iterdir()) == [
        ".lock",
        "checkpoints",
        "curves.png",
        "last",
        "log.jsonl",
        "tensorboard",
    ]
    assert sorted(p.name for p in last.parent.iterdir()) == ["step_000003", "step_000004"]
    assert sorted(p.name for p in last.iterdir()) == [
        "config.json",
        "ema.safetensors",
        "model.safetensors",
        "run.json",
        "state.json",
        "trainer.safetensors",
    ]
    lines = [line for line in read_log(out / "log.jsonl") if line["group"] == "train"]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    needed = {"loss", "loss_sem_1", "loss_mask_1", "lr", "gradient_norm", "images_per_second"}
    assert needed | {"data_seconds", "compute_seconds"} <= lines[0].keys()
    terms = sum(v for k, v in lines[0].items() if k.startswith("loss_"))
    assert lines[0]["loss"] == pytest.approx(terms, rel=1e-4)
    assert list((out / "tensorboard").iterdir())


def test_shipped_weights_are_the_moving_average(config: RunConfig) -> None:
    last = train(config)
    assert load_model(config.out).data == "rectangles"
    ema, weights = (load_file(last / f"{n}.safetensors")["backbone.conv1.weight"] for n in ("ema", "model"))
    assert not torch.equal(ema, weights)
    loaded = load_model(config.out).model.state_dict()["backbone.conv1.weight"]
    assert torch.equal(loaded, ema)


def test_the_loss_falls(config: RunConfig) -> None:
    config.optim.max_steps = 20
    train(config)
    losses = [x["loss"] for x in read_log(Path(config.out) / "log.jsonl") if x["group"] == "train"]
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])


def test_a_loss_that_is_not_finite_stops_the_run(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    from refine.modeling.model import PanopticModel

    loss = PanopticModel.loss
    calls = []

    def poisoned(self, images, targets):  # type: ignore[no-untyped-def]
        calls.append(1)
        return loss(self, images, targets) | ({"loss_bad": images.tensor.sum() / 0} if len(calls) > 4 else {})

    monkeypatch.setattr(PanopticModel, "loss", poisoned)
    config.optim.max_steps = 9
    with pytest.raises(RefineError, match=r"step 4: .*loss_bad = \S*(inf|nan).*images 0\d\d\.png, .*optim\.lr"):
        train(config)
    assert (Path(config.out) / "last").read_text().strip() == "step_000003"


def test_a_gradient_that_is_not_finite_leaves_the_weights_unchanged(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    from refine.modeling.model import PanopticModel

    loss = PanopticModel.loss

    def poisoned(self, images, targets):  # type: ignore[no-untyped-def]
        # The square root of 0 is finite, but its derivative is not.
        return loss(self, images, targets) | {"loss_bad": (self.backbone.conv1.weight * 0).sum().sqrt()}

    monkeypatch.setattr(PanopticModel, "loss", poisoned)
    with pytest.raises(RefineError, match="step 0: the gradient's norm is nan"):
        train(config)
    assert not (Path(config.out) / "last").exists()


def test_parts_of_a_batch_add_up(config: RunConfig, tmp_path: Path) -> None:
    """Losses are means over each part, so that the mean over parts is close to that of the batch, not equal."""
    losses = []
    for parts in (1, 2):
        config = exhaustive(tiny_run(tmp_path / "data", tmp_path / f"out{parts}"))
        config.optim.max_steps, config.optim.accumulate = 1, parts
        train(config)
        losses.append(read_log(Path(config.out) / "log.jsonl")[1]["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


def test_the_batch_must_divide_evenly(config: RunConfig) -> None:
    config.optim.accumulate = 3
    with pytest.raises(RefineError, match=r"optim\.batch_size is 4.*multiple of 3"):
        train(config)


def test_init_from_a_model(config: RunConfig, tmp_path: Path) -> None:
    train(config)
    save_model(tmp_path / "exported", load_model(config.out), half=True)
    config.init, config.out, config.optim.lr = str(tmp_path / "exported"), str(tmp_path / "next"), 0.0
    config.optim.max_steps = 1
    last = train(config)
    before, after = (
        load_file(tmp_path / "exported" / "model.safetensors"),
        load_file(last / "model.safetensors"),
    )
    assert all(torch.equal(before[k].float(), after[k].float()) for k in before)
    assert "started from" in read_log(tmp_path / "next" / "log.jsonl")[0]["text"]


def test_train_only_one_part(config: RunConfig, tmp_path: Path) -> None:
    config.optim.max_steps = 1
    first = load_file(train(config) / "model.safetensors")
    config.out, config.optim.max_steps = str(tmp_path / "second"), 2
    config.optim.train_only, config.init = (
        ["semantic_head"],
        str(tmp_path / "out" / "checkpoints" / "step_000001"),
    )
    config.optim.ema = None
    ema = load_file(tmp_path / "out" / "checkpoints" / "step_000001" / "ema.safetensors")
    second = load_file(train(config) / "model.safetensors")
    changed = {k.split(".")[0] for k in first if not torch.equal(ema[k], second[k])}
    assert changed == {"semantic_head"}


def test_frozen_random_weights_are_an_error(config: RunConfig, tmp_path: Path) -> None:
    config.model.ibpp.iterations, config.optim.max_steps = 0, 1
    train(config)
    config.init, config.out = config.out, str(tmp_path / "second")
    config.model.ibpp.iterations = 1  # a semantic head that the checkpoint does not have
    config.optim.train_only = ["semantic_head"]
    with pytest.raises(RefineError, match=r"init: .*no values for \d+ tensors.*first ibpp\..*train_only"):
        train(config)
    config.optim.train_only = ["semantic_head", "ibpp"]
    train(config)


def test_frozen_heads_keep_the_classes_of_their_data(config: RunConfig, tmp_path: Path) -> None:
    """Categories in another order would give each other's names to the predictions."""
    config.optim.max_steps = 1
    train(config)
    config.init, config.out = config.out, str(tmp_path / "second")
    path = Path(config.data.train.json)
    content = read_json(path)
    names = {3: "green", 5: "red", 9: "ground"}
    write_json(path, content | {"categories": [c | {"name": names[c["id"]]} for c in content["categories"]]})
    config.optim.train_only = ["backbone", "fpn", "rpn", "semantic_head"]
    message = r"init: .* predicts 'red' \(thing\) where data.train has 'green'.* leaves box_heads\.\S+ as it is"
    with pytest.raises(RefineError, match=message):
        train(config)
    config.optim.train_only = ["box_heads", "semantic_head", "ibpp"]
    train(config)


def test_stuff_alone_is_learned_from_a_model_with_things(config: RunConfig, tmp_path: Path) -> None:
    """Layers per thing class have no elements then, so nothing about them has to be trained."""
    config.optim.max_steps = 1
    train(config)
    config.init, config.out = config.out, str(tmp_path / "second")
    stuff = [{"id": 9, "name": "ground", "isthing": 0}]
    write_json(tmp_path / "remap.json", {"categories": stuff, "map": {"3": None, "5": None, "9": 9}})
    config.data.train.remap = str(tmp_path / "remap.json")
    config.optim.train_only = ["semantic_head", "ibpp", "box_heads.stages.0.classifier"]
    train(config)
    started = read_log(tmp_path / "second" / "log.jsonl")[0]["text"]
    assert started.endswith(
        "(initialised randomly: 7 tensors of another shape or name, first box_heads.stages.0.classifier.weight)"
    )


def test_the_fusion_rule_is_checked_before_the_first_update(config: RunConfig) -> None:
    config.data.val, config.eval.method = config.data.train, "soe"
    config.model.occlusion = None
    with pytest.raises(RefineError, match="no occlusion head"):
        train(config)
    assert not list(Path(config.out).glob("checkpoints/*"))


def test_an_impossible_output_folder_is_reported(config: RunConfig, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    config.out = str(tmp_path / "file" / "run")
    with pytest.raises(RefineError, match=r"run: cannot be written .*; choose another --out"):
        train(config)


def test_reduced_precision(config: RunConfig) -> None:
    config.optim.precision = "bf16"
    train(config)
    lines = read_log(Path(config.out) / "log.jsonl")
    assert lines[-1]["loss"] > 0


FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of")


@pytest.mark.parametrize(
    ("error", "changes", "expected"),
    [
        (
            FULL,
            {},
            r"at a time: 4; increase optim\.accumulate \(now 1\), the number of parts of a batch, or lower "
            r"optim\.batch_size \(now 4\), or lower augment\.short \(now \[64\]\) and augment\.long \(now 96\), or "
            r"set optim\.precision to bf16$",
        ),
        (
            MemoryError(),
            {"optim.accumulate": 4, "augment.crop": (64, 96), "optim.precision": "bf16"},
            r"at a time: 1; lower augment\.crop \(now \[64, 96\]\)$",
        ),
    ],
)
def test_too_little_memory_is_reported_with_what_to_lower(error, changes, expected, tmp_path, monkeypatch):
    def fail(model, images, targets):
        raise error

    monkeypatch.setattr(PanopticModel, "loss", fail)
    config = tiny_run(write_dataset(tmp_path / "data"), tmp_path / "out")
    for name, value in changes.items():
        part, field = name.split(".")
        setattr(getattr(config, part), field, value)
    with pytest.raises(RefineError, match=f"^not enough memory for an update, with images {expected}"):
        train(config)


def test_an_evaluation_that_does_not_fit_into_memory_names_its_size(config, monkeypatch):
    def fail(*arguments, **options):
        raise FULL

    monkeypatch.setattr("refine.training.train.evaluate", fail)
    config.data.val, config.optim.max_steps = config.data.train, 1
    message = (
        r"^evaluation at step 1 failed: not enough memory; lower eval\.short \(now 64\) and eval\.long \(now 96\);"
    )
    with pytest.raises(RefineError, match=message):
        train(config)
