"""Norms folded into convolutions."""

import pytest
import torch
from torch import nn

from refine.experiments.cost import random_model
from refine.modeling.backbones import build_backbone
from refine.modeling.config import (
    BackboneConfig,
    BoxHeadConfig,
    IBPPConfig,
    MaskHeadConfig,
    ModelConfig,
    SemanticHeadConfig,
)
from refine.modeling.folding import fold_norms
from refine.modeling.norms import FrozenBatchNorm, conv_norm

SMALL = {"weights": None, "stem_width": 16, "width_per_group": 16, "res2_channels": 64}
NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm, FrozenBatchNorm)


def with_statistics(network: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for norm in network.modules():
        if isinstance(norm, NORMS):
            for tensor, low, high in ((norm.weight, 0.5, 1.5), (norm.running_var, 0.5, 2), (norm.bias, -1, 1)):
                tensor.data.uniform_(low, high, generator=generator)
            norm.running_mean.data.uniform_(-1, 1, generator=generator)
    return network.eval()


@pytest.mark.parametrize(
    ("config", "left"),
    [
        (BackboneConfig("resnet50", norm="frozen_bn", **SMALL), 0),
        (BackboneConfig("resnet50", norm="frozen_bn", deform_stages=[5], **SMALL), 3),
        (BackboneConfig("resnet18", norm="bn", weights=None), 0),
        (BackboneConfig("resnet18", norm="sync_bn", weights=None), 0),
        (BackboneConfig("timm/tf_efficientnet_lite0", norm="bn", weights=None), 0),
        (BackboneConfig("timm/mobilenetv2_050", norm="bn", weights=None), None),  # norms contain the activation
        (BackboneConfig("timm/regnetx_002", norm="bn", weights=None), None),
    ],
    ids=lambda value: "-".join([value.name.rpartition("/")[2], value.norm]) if hasattr(value, "norm") else None,
)
def test_outputs_stay_the_same(config, left):
    network = with_statistics(build_backbone(config))
    x = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = network(x)
        fold_norms(network)
        for value, before in zip(network(x), expected, strict=True):
            torch.testing.assert_close(value, before, rtol=1e-4, atol=1e-4 * float(before.abs().max()))
    if left is not None:
        assert sum(isinstance(module, NORMS) for module in network.modules()) == left


@pytest.mark.parametrize("norm", ["bn", "frozen_bn"])
@pytest.mark.parametrize("exchange", ["paper", "balanced"])
def test_norms_of_sums_in_the_heads_stay(norm, exchange):
    """The first norm of a mask head and of a refining head normalises the sum of two or three convolutions."""
    config = ModelConfig(
        backbone=BackboneConfig("resnet18", norm=norm, weights=None),
        fpn_channels=16,
        fpn_norm=norm,
        box_head=BoxHeadConfig(num_convs=1, conv_channels=16, fc_channels=32, norm=norm),
        mask_head=MaskHeadConfig(num_convs=2, channels=16, norm=norm),
        semantic_head=SemanticHeadConfig(channels=16, norm=norm),
        ibpp=IBPPConfig(2, sem_channels=16, exchange=exchange),
    )
    torch.manual_seed(0)
    model = with_statistics(random_model(config, 3, 5))
    image = torch.randint(0, 255, (3, 64, 96), generator=torch.Generator().manual_seed(1)).float()
    (before,) = model.predict(model.image_batch([image]))
    fold_norms(model)
    (after,) = model.predict(model.image_batch([image]))
    spread = float(before.sem_logits.std())
    torch.testing.assert_close(after.sem_logits, before.sem_logits, rtol=0, atol=1e-3 * spread)
    torch.testing.assert_close(after.instances.roi_masks, before.instances.roi_masks, rtol=0, atol=2e-3)
    assert any(isinstance(module, nn.Identity) for module in model.fpn.modules())


def test_other_norms_are_left_and_modes_kept():
    network = nn.Sequential(conv_norm(3, 4, norm="gn"), conv_norm(4, 4, norm="bn", relu=False)).eval()
    fold_norms(network)
    assert isinstance(network[0][1], nn.GroupNorm)
    assert isinstance(network[1][1], nn.Identity)
    assert not any(module.training for module in network.modules())
