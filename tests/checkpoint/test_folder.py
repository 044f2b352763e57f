"""Tests of saving and loading model folders."""

import json
import resource
from pathlib import Path

import pytest
import torch
from helpers.tiny_run import CATEGORIES, tiny_model
from safetensors.torch import load_file, save_file

from refine.checkpoint import find
from refine.checkpoint.folder import (
    SavedModel,
    load_matching,
    load_model,
    save_model,
)
from refine.errors import RefineError
from refine.fusion.config import FusionConfig
from refine.modeling.config import IBPPConfig
from refine.modeling.model import PanopticModel
from refine.structures import Categories


@pytest.fixture
def saved() -> SavedModel:
    return SavedModel(
        PanopticModel(tiny_model(), 2, 3).eval(),
        Categories.from_json(CATEGORIES),
        test_size=(64, 96),
        method="heuristic",
        fusion=FusionConfig(stuff_area=7),
        data="rectangles",
        metrics={"PQ": 0.5},
    )


def logits(model: PanopticModel) -> torch.Tensor:
    image = torch.arange(3 * 64 * 96, dtype=torch.uint8).view(3, 64, 96)
    return model.predict(model.image_batch([image]))[0].sem_logits


def test_round_trip(saved: SavedModel, tmp_path: Path) -> None:
    save_model(tmp_path / "model", saved)
    again = load_model(tmp_path / "model")
    assert torch.equal(logits(saved.model), logits(again.model))
    assert again.model.config == saved.model.config
    assert not again.model.training
    for name in ("categories", "test_size", "method", "fusion", "data", "metrics"):
        assert getattr(again, name) == getattr(saved, name)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model"]


def test_parts_that_start_at_zero_may_still_be_zero(saved: SavedModel, tmp_path: Path) -> None:
    """As after training of other parts alone (`optim.train_only`)."""
    config = tiny_model()
    config.ibpp = IBPPConfig(2, exchange="balanced", residual=True, mask_flow=True, sem_channels=32)
    config.backbone.deform_stages = [5]
    saved.model = PanopticModel(config, 2, 3).eval()
    zero = [name for name, value in saved.model.state_dict().items() if value.ndim > 1 and not value.any()]
    assert {name.split(".")[-2] for name in zero} >= {"from_semantic", "from_f_sem", "from_before", "offset"}
    save_model(tmp_path / "model", saved)
    loaded = load_model(tmp_path / "model").model
    assert all(torch.equal(a, b) for a, b in zip(saved.model.parameters(), loaded.parameters(), strict=True))


def test_pretrained_backbone_is_not_loaded_again(saved: SavedModel, tmp_path: Path) -> None:
    saved.model.config.backbone.weights = "/nowhere/weights.safetensors"
    save_model(tmp_path / "model", saved)
    assert load_model(tmp_path / "model").model.config.backbone.weights == "/nowhere/weights.safetensors"


def test_half_precision_halves_the_file(saved: SavedModel, tmp_path: Path) -> None:
    save_model(tmp_path / "full", saved)
    save_model(tmp_path / "half", saved, half=True)
    full, half = (tmp_path / n / "model.safetensors" for n in ("full", "half"))
    assert half.stat().st_size < 0.6 * full.stat().st_size
    again = load_model(tmp_path / "half")
    assert {p.dtype for p in again.model.parameters()} == {torch.float32}
    assert torch.allclose(logits(saved.model), logits(again.model), atol=0.02, rtol=0.02)


def test_an_older_model_is_replaced(saved: SavedModel, tmp_path: Path) -> None:
    save_model(tmp_path / "model", saved)
    saved.data = "other"
    save_model(tmp_path / "model", saved)
    assert load_model(tmp_path / "model").data == "other"


def test_weights_of_another_config_raise_with_the_difference(saved: SavedModel, tmp_path: Path) -> None:
    save_model(tmp_path / "model", saved)
    path = tmp_path / "model" / "config.json"
    description = json.loads(path.read_text())
    description["model"]["box_head"]["fc_channels"] = 128
    description["model"]["ibpp"]["iterations"] = 2
    path.write_text(json.dumps(description))
    with pytest.raises(RefineError, match=r"missing: ibpp\.\S+.*of another shape: box_heads\S+ \(64"):
        load_model(tmp_path / "model")


def test_unexpected_weights_raise(saved: SavedModel, tmp_path: Path) -> None:
    save_model(tmp_path / "model", saved)
    path = tmp_path / "model" / "model.safetensors"
    save_file(load_file(path) | {"stray": torch.zeros(1)}, path)
    with pytest.raises(RefineError, match="1 unexpected: stray"):
        load_model(tmp_path / "model")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"format": 99}, "update refine"),
        ({"format": None}, "format"),
        ({"test_size": None}, "test_size"),
        ({"test_size": "x"}, "test_size is 'x', expected"),
        ({"test_size": [0, 5]}, r"test_size is \[0, 5\]"),
        ({"fusion": "wide"}, "fusion is 'wide', expected a mapping"),
        ({"test_size": [64, 10**9]}, "2 to 16384"),
        ({"test_size": [1, 64]}, r"test_size is \[1, 64\], expected \[short, long\] px, 2 to 16384"),
        ({"test_size": [True, 5]}, "test_size"),
        ({"model": {"rpn": 3}}, r"config\.json: model: rpn: expected a mapping, got 3"),
        ({"model": {"rpn": {"num_convs": None}}}, r"model: rpn\.num_convs: expected a value, got null"),
        ({"model": {"occlusion": [1]}}, r"model: occlusion: expected a mapping, got \[1\]"),
        ({"metrics": 3}, "metrics is 3, expected a mapping"),
        ({"data": [1]}, "data is"),
        ({"method": {}}, "method is {}, expected a string"),
        (
            {"model": {"pixel_std": [1, 0, 1]}},
            r"config\.json: model: pixel_std is \[1\.0, 0\.0, 1\.0\]; give a number above 0",
        ),
        ({"model": {"pixel_mean": [1, float("inf"), 1]}}, r"model: pixel_mean is"),
        ({"model": {"pixel_mean": [10**400, 1, 1]}}, r"config\.json: model"),
        ({"model": {"fpn_chanels": 3}}, r"config\.json: model: fpn_chanels"),
        ({"fusion": {"sigma": "wide"}}, r"fusion: sigma"),
    ],
)
def test_invalid_descriptions_raise(saved: SavedModel, tmp_path: Path, change: dict, named: str) -> None:
    save_model(tmp_path / "model", saved)
    path = tmp_path / "model" / "config.json"
    description = {k: v for k, v in (json.loads(path.read_text()) | change).items() if v is not None}
    path.write_text(json.dumps(description))
    with pytest.raises(RefineError, match=named):
        load_model(tmp_path / "model")


@pytest.mark.parametrize(
    ("part", "change"),
    [
        (None, {"fpn_channels": 10**6}),
        (None, {"fpn_channels": 10**12}),
        (None, {"fpn_channels": 10**30}),
        (None, {"fpn_channels": 0}),
        ("backbone", {"stem_width": 0}),
        (None, {"fpn_channels": -1}),
        ("backbone", {"stem_width": 10**7}),
        ("backbone", {"res2_channels": 10**9}),
        ("rpn", {"num_convs": 10**9}),
        ("rpn", {"aspect_ratios": []}),
        ("box_head", {"num_convs": 10**9}),
        ("box_head", {"num_fcs": 10**9}),
        ("box_head", {"fc_channels": 10**10}),
        ("box_head", {"pool_size": 10**6}),
        ("box_head", {"ious": []}),
        ("mask_head", {"num_convs": 10**9}),
        ("mask_head", {"channels": 10**8}),
        ("mask_head", {"pool_size": 10**6}),
        (None, {"divisor": 10**9}),
        (None, {"roi_sampling": 10**9}),
        ("semantic_head", {"channels": 10**10}),
        ("ibpp", {"iterations": 10**9}),
        ("ibpp", {"sem_convs": 10**9}),
        ("occlusion", {"conv_channels": 10**10}),
    ],
)
def test_impossible_networks_raise_before_they_are_built(
    saved: SavedModel, tmp_path: Path, part: str | None, change: dict
) -> None:
    save_model(tmp_path / "model", saved)
    path = tmp_path / "model" / "config.json"
    description = json.loads(path.read_text())
    if part == "occlusion":
        description["model"]["occlusion"] = {}
    (description["model"][part] if part else description["model"]).update(change)
    path.write_text(json.dumps(description))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(RefineError, match=r"(config\.json|model\.safetensors): ") as caught:
        load_model(tmp_path / "model")
    assert len(str(caught.value).splitlines()) == 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024  # KiB


@pytest.mark.parametrize("text", ["[" * 100_000, '{"format": 1, "model": ' + '{"a":' * 900 + "1" + "}" * 901])
def test_deeply_nested_descriptions_raise(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(RefineError, match=r"config\.json"):
        load_model(tmp_path)


def test_invalid_weights_raise_with_their_name(saved: SavedModel, tmp_path: Path) -> None:
    save_model(tmp_path / "model", saved)
    path = tmp_path / "model" / "model.safetensors"
    whole = load_file(path)
    for name, value, message in (
        ("rpn.conv.bias", torch.full_like(whole["rpn.conv.bias"], torch.nan), "NaN or infinite"),
        ("fpn.levels.inner_blocks.0.0.weight", whole["fpn.levels.inner_blocks.0.0.weight"] / 0, "NaN or infinite"),
        ("backbone.conv1.weight", whole["backbone.conv1.weight"].to(torch.int8), "int8, expected torch.float32"),
        ("backbone.conv1.weight", torch.zeros_like(whole["backbone.conv1.weight"]), "all zero"),
    ):
        save_file(whole | {name: value}, path)
        with pytest.raises(RefineError, match=rf"model\.safetensors: .*{name}.*|.*{message}") as caught:
            load_model(tmp_path / "model")
        assert name in str(caught.value)
        assert message in str(caught.value)
        with pytest.raises(RefineError, match=message):
            load_matching(PanopticModel(tiny_model(), 2, 3), tmp_path / "model")


def test_damaged_or_missing_weights_raise(saved: SavedModel, tmp_path: Path) -> None:
    save_model(tmp_path / "model", saved)
    path = tmp_path / "model" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(RefineError, match=r"model\.safetensors: is damaged"):
        load_model(tmp_path / "model")
    path.unlink()
    with pytest.raises(RefineError, match=r"model\.safetensors: no such file"):
        load_model(tmp_path / "model")
    with pytest.raises(RefineError, match="nothing_here: no such model"):
        load_model(tmp_path / "nothing_here")


def test_shipped_models_have_names(saved: SavedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(find, "SHIPPED", tmp_path)
    save_model(tmp_path / "cells", saved)
    assert find.shipped_models() == ["cells"]
    assert load_model("cells").data == "rectangles"
    with pytest.raises(RefineError, match="shipped models \\(cells\\)"):
        load_model("cats")


def test_initialisation_from_a_model_with_other_classes(saved: SavedModel, tmp_path: Path) -> None:
    save_model(tmp_path / "model", saved)
    other = PanopticModel(tiny_model(), 3, 5)
    unchanged = load_matching(other, tmp_path / "model")
    assert torch.equal(other.backbone.conv1.weight, saved.model.backbone.conv1.weight)
    assert unchanged
    assert all(n.startswith(("box_heads", "ibpp", "semantic_head")) for n in unchanged)


def test_missing_iterations_are_initialised_from_the_last_one(saved: SavedModel, tmp_path: Path) -> None:
    config = tiny_model()
    config.ibpp.iterations = 0
    save_model(tmp_path / "plain", SavedModel(PanopticModel(config, 2, 4), saved.categories))
    config.ibpp.iterations = 3
    model = PanopticModel(config, 2, 4)
    load_matching(model, tmp_path / "plain")
    first, _, last = model.ibpp.mask_heads
    assert torch.equal(first.deconv.weight, last.deconv.weight)
    # With iterations of their own, the last existing one initialises the missing ones.
    config.ibpp.iterations = 2
    two = PanopticModel(config, 2, 4)
    save_model(tmp_path / "two", SavedModel(two, saved.categories))
    load_matching(model, tmp_path / "two")
    for t, source in enumerate((0, 1, 1)):
        for heads in ("mask_heads", "semantic_heads"):
            got, expected = (
                getattr(model.ibpp, heads)[t].state_dict(),
                getattr(two.ibpp, heads)[source].state_dict(),
            )
            assert all(torch.equal(got[k], expected[k]) for k in expected)


def test_from_the_hub(saved: SavedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    save_model(tmp_path / "model", saved)
    repositories = []

    def snapshot(repository: str, **_: object) -> str:
        repositories.append(repository)
        return str(tmp_path / "model")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert load_model("hf:someone/rectangles").data == "rectangles"
    assert repositories == ["someone/rectangles"]
