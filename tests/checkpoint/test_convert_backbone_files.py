"""External weight files of a backbone give its features."""

import numpy as np
import pytest
import torch
from helpers.detectron2_files import write
from torchvision.models import resnet50, resnext101_32x8d

from refine.checkpoint.convert.convert import convert_file
from refine.cli.main import main
from refine.modeling.backbones import build_backbone
from refine.modeling.config import BackboneConfig
from refine.modeling.pretrained import load_pretrained


def caffe2_name(name: str) -> str | None:
    """Return the name in MSRA's and FAIR's files of a ResNet weight in torchvision."""
    leaf = {"weight": "w", "bias": "b"}
    folded = {"weight": "s", "bias": "b"}
    parts = name.split(".")
    if parts[0] in ("conv1", "bn1"):
        return (
            "conv1_w"
            if parts[0] == "conv1"
            else {"weight": "res_conv1_bn_s", "bias": "res_conv1_bn_b"}.get(parts[1])
        )
    if parts[0] == "fc":
        return f"fc1000_{leaf[parts[1]]}"
    stage, block = int(parts[0][-1]) + 1, parts[1]
    if parts[2] == "downsample":
        branch, is_norm = "branch1", parts[3] == "1"
    else:
        branch, is_norm = f"branch2{' abc'[int(parts[2][-1])]}", parts[2].startswith("bn")
    if is_norm and parts[-1] not in folded:
        return None
    return f"res{stage}_{block}_{branch}_" + (f"bn_{folded[parts[-1]]}" if is_norm else leaf[parts[-1]])


@pytest.mark.parametrize("build", [resnet50, pytest.param(resnext101_32x8d, marks=pytest.mark.slow)])
def test_caffe2_backbone(tmp_path, build):
    """Weights with statistics folded into scale and shift, as in MSRA's files, give the same features."""
    original = build(weights=None)
    blobs = {caffe2_name(k): v.numpy() for k, v in original.state_dict().items()}
    del blobs[None]
    blobs |= {"conv1_b": np.ones(64, np.float32), "res2_0_branch2a_b": np.zeros(64, np.float32)}
    source = write(tmp_path / "R.pkl", blobs)
    conversion = convert_file(source, tmp_path / "r.safetensors")
    assert set(conversion.left) == {"conv1_b", "res2_0_branch2a_b", "fc1000_w", "fc1000_b"}
    assert conversion.config.channels == "BGR"
    plain = build is resnet50
    assert conversion.config.pixel_std == ((1, 1, 1) if plain else (57.375, 57.12, 58.395))
    assert conversion.config.backbone.stride_in_1x1 == plain
    config = BackboneConfig(
        conversion.config.backbone.name, weights=str(tmp_path / "r.safetensors"), norm="frozen_bn"
    )
    backbone = build_backbone(config)
    load_pretrained(backbone, config)
    x = torch.randn(1, 3, 64, 64)
    original.eval()
    for module in original.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eps = 0.0  # folded statistics have no epsilon
    with torch.no_grad():
        expected = original.maxpool(original.relu(original.bn1(original.conv1(x))))
        for n, got in enumerate(backbone.eval()(x), 1):
            expected = getattr(original, f"layer{n}")(expected)
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


def test_torchvision_backbone(tmp_path, capsys):
    original = resnet50(weights=None)
    torch.save(original.state_dict(), tmp_path / "r50.pth")
    out = tmp_path / "r50.safetensors"
    assert main(["convert", str(tmp_path / "r50.pth"), "-o", str(out)]) == 0
    assert '"channels": "RGB"' in capsys.readouterr().out
    config = BackboneConfig("resnet50", weights=str(out), norm="frozen_bn")
    backbone = build_backbone(config)
    load_pretrained(backbone, config)
    assert torch.equal(backbone.layer4[2].conv3.weight, original.layer4[2].conv3.weight)
    assert main(["convert", str(tmp_path / "r50.pth"), "-o", str(tmp_path / "folder")]) == 1
    assert "contains only a backbone" in capsys.readouterr().err
