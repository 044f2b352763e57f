"""Conversion of a model with its fusion to ONNX, or to a `torch.export` program, in memory."""

from __future__ import annotations

import io
import json
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from refine import __version__
from refine.checkpoint.folder import SavedModel
from refine.errors import RefineError, missing_extra
from refine.export.panoptic import OUTPUTS, THRESHOLDS, ExportPanoptic
from refine.fusion.config import HEADS
from refine.networks.onnx import FORMAT

OPSET = 20
"""ONNX operator set; DeformConv needs 19."""

METADATA = "refine.json"
"""Name of the metadata in a `torch.export` file; in an ONNX file each entry is one string, a JSON value."""


def trace(saved: SavedModel) -> ExportedProgram:
    """Trace a model with its fusion rule for images of every size.

    Raises:
        RefineError: a part of the model or of its fusion cannot be exported.
    """
    model = ExportPanoptic(saved.model.cpu(), saved.categories, saved.test_size, saved.method, saved.fusion)
    image = torch.zeros(3, 100, 141, dtype=torch.uint8)
    thresholds = tuple(torch.tensor(float(getattr(saved.fusion, name)), dtype=torch.float64) for name in THRESHOLDS)
    shapes = ({1: Dim.DYNAMIC, 2: Dim.DYNAMIC}, tuple(None for _ in thresholds))
    with _quiet(), torch.no_grad():
        try:
            return torch.export.export(model, (image, *thresholds), dynamic_shapes=shapes, strict=False)
        except (RuntimeError, ValueError, TypeError, AssertionError, NotImplementedError) as error:
            raise RefineError(f"the model cannot be exported ({_reason(error)}); use another backbone") from error


def metadata(saved: SavedModel, name: str, licence: str, digest: str) -> dict[str, Any]:
    """Return the entries that describe an exported model, JSON values.

    Args:
        saved: model with its fusion.
        name: name of the model.
        licence: licence of the weights.
        digest: digest of the network.
    """
    config = saved.model.config
    return {
        "format": FORMAT,
        "refine": __version__,
        "torch": torch.__version__,
        "model": name,
        "licence": licence,
        "digest": digest,
        "data": saved.data,
        "categories": saved.categories.to_json(),
        "test_size": list(saved.test_size),
        "method": saved.method,
        "fusion": asdict(saved.fusion),
        "max_detections": (config.detector or config.box_head).max_detections,
    }


def to_onnx(program: ExportedProgram, entries: dict[str, Any]) -> bytes:
    """Convert a program of `trace` to an ONNX file, whose thresholds are inputs with defaults.

    Args:
        program: traced model.
        entries: metadata.

    Raises:
        RefineError: the packages for ONNX are missing, an operator cannot be converted, or the file is too large.
    """
    try:
        import onnx
        import onnxscript
    except ImportError as error:
        raise missing_extra("export to ONNX needs onnx and onnxscript", "onnx") from error
    with _quiet():
        try:
            converted = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=OPSET,
                input_names=["image", *THRESHOLDS],
                output_names=[name for name in OUTPUTS if name != "occlusion" or entries["method"] in HEADS],
                verbose=False,
            )
            assert converted is not None
            model = converted.model_proto
        except torch.onnx.errors.OnnxExporterError as error:
            raise RefineError(
                f"the model cannot be converted to ONNX by PyTorch {torch.__version__} and onnxscript "
                f"{onnxscript.__version__} ({_reason(error)}); use --format torch"
            ) from error
    for name in THRESHOLDS:
        default = onnx.helper.make_tensor(name, onnx.TensorProto.DOUBLE, [], [float(entries["fusion"][name])])
        model.graph.initializer.append(default)
    for value in model.graph.output:
        value.doc_string = OUTPUTS[value.name]
    model.producer_name, model.producer_version = "refine", __version__
    model.doc_string = f"Panoptic segmentation: {entries['model']}"
    entries = entries | {"onnxscript": onnxscript.__version__}
    onnx.helper.set_model_props(model, {name: json.dumps(value) for name, value in entries.items()})
    if model.ByteSize() >= 2**31:
        raise RefineError(f"the model has {model.ByteSize() / 1e9:.1f} GB: an ONNX file holds at most 2.1 GB")
    content: bytes = model.SerializeToString()
    return content


def to_pt2(program: ExportedProgram, entries: dict[str, Any]) -> bytes:
    """Convert a program of `trace` to the content of a .pt2 file with `METADATA`."""
    content = io.BytesIO()
    with _quiet():
        torch.export.save(program, content, extra_files={METADATA: json.dumps(entries)})
    return content.getvalue()


class Pt2:
    """Exported .pt2 file, run by PyTorch.

    Args:
        content: content of the file.

    Attributes:
        metadata: entries of `metadata`.
    """

    def __init__(self, content: bytes) -> None:
        extra = {METADATA: ""}
        with _quiet():
            self.model = torch.export.load(io.BytesIO(content), extra_files=extra).module()
        self.metadata: dict[str, Any] = json.loads(extra[METADATA])

    @torch.no_grad()
    def run(self, image: Tensor) -> dict[str, np.ndarray]:
        """Return the outputs for an image, Tensor[3, H, W] uint8, with the thresholds of the file."""
        thresholds = (
            torch.tensor(float(self.metadata["fusion"][name]), dtype=torch.float64) for name in THRESHOLDS
        )
        return {name: value.numpy() for name, value in self.model(image, *thresholds).items()}


def _reason(error: Exception) -> str:
    """Return the last cause of an error in one line, without colours."""
    while isinstance(error.__cause__, Exception):
        error = error.__cause__
    return re.sub("\x1b\\[\\d+m", "", str(error)).strip().split("\n")[0][:300]


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the remarks of the exporters on their own code."""
    loggers = [logging.getLogger(name) for name in ("torch", "torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
