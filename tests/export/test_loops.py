"""Cells, the merging loop and Unknown Erasing in ONNX Runtime, without a network."""

import numpy as np
import pytest
import torch
from helpers.scenes import scene
from torch import nn
from torch.export import Dim

from refine.export.cells import cells_of, mask_edges, random_keys
from refine.export.merge import merge
from refine.export.program import OPSET

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


class _Merge(nn.Module):
    """Pastes masks in their order: masks [N, M, M], boxes [N, 4], canvas [H, W], keys -> areas, covers, owners."""

    def forward(self, masks, boxes, canvas, keys):
        size, count = (canvas.shape[0], canvas.shape[1]), masks.shape[0]
        edges = mask_edges(masks, boxes, size)
        areas = edges.areas(count)
        cells = cells_of(edges, count, keys, size[0] * size[1])
        threshold = torch.tensor(0.5, dtype=torch.float64)
        alive = torch.ones(count, dtype=torch.bool)
        owner = merge(cells, areas, torch.arange(count), alive, None, threshold, False)
        return areas, cells.covers, owner[cells.cell]


def _inputs(seed: int, count: int, size: tuple[int, int]):
    masks = torch.rand(count, 1, 6, 6, generator=torch.Generator().manual_seed(seed))
    masks = nn.functional.interpolate(masks, (28, 28), mode="bicubic")[:, 0].clamp(0, 1)
    return masks, scene(seed, count, size).instances.boxes, torch.zeros(size), random_keys(300)


def test_merge_in_onnx_runtime_equals_pytorch(tmp_path):
    shapes = ({0: Dim.DYNAMIC}, {0: Dim.DYNAMIC}, {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}, None)
    program = torch.export.export(_Merge(), _inputs(0, 9, (40, 60)), dynamic_shapes=shapes, strict=False)
    torch.onnx.export(program, dynamo=True, opset_version=OPSET, verbose=False).save(tmp_path / "merge.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "merge.onnx", providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    for seed, count in enumerate((1, 20, 33, 200)):
        inputs = _inputs(seed, count, (120, 160))
        expected = _Merge()(*inputs)
        found = session.run(None, {name: value.numpy() for name, value in zip(names, inputs, strict=True)})
        for one, other in zip(found, expected, strict=True):
            assert np.array_equal(one, other.numpy()), f"{count} masks"
