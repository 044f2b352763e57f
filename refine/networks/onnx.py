"""Models that `refine export` wrote, run by ONNX Runtime."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from refine.config import from_mapping
from refine.data.resize import fit_scale
from refine.errors import RefineError, missing_extra
from refine.fusion.config import HEADS, FusionConfig, Head
from refine.networks.network import Network
from refine.structures import Categories, Instances, Prediction
from refine.tensors import check_finite

FORMAT = 1
"""Version of exported files; newer versions are rejected."""


ENTRIES = ("categories", "method", "fusion", "max_detections", "test_size", "digest")
"""Entries of the metadata that prediction needs."""


class OnnxSession:
    """ONNX file of `refine export` in ONNX Runtime.

    Args:
        content: path or content of the file.
        source: name of the file, for error messages.
        threads: number of threads; None for those of PyTorch.

    Attributes:
        metadata: entries that `refine.export.program.metadata` lists.

    Raises:
        RefineError: ONNX Runtime is not installed, or the file is not an exported model of this version.
    """

    def __init__(self, content: Path | bytes, source: str, threads: int | None = None) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise missing_extra(f"{source}: ONNX files need ONNX Runtime", "onnx") from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or torch.get_num_threads()
        options.log_severity_level = 3
        given = content if isinstance(content, bytes) else str(content)
        try:
            self.session = onnxruntime.InferenceSession(given, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime has a class of exceptions per status, without a common base
            reason = str(error).split("\n")[0][:200]
            raise RefineError(
                f"{source}: cannot be read by ONNX Runtime ({reason}); export the model again"
            ) from error
        self.metadata = read_metadata(self.session.get_modelmeta().custom_metadata_map, source)
        self.outputs = [output.name for output in self.session.get_outputs()]
        self._run_options = onnxruntime.RunOptions()
        self._run_options.only_execute_path_to_fetches = True

    def run(
        self, image: Tensor, outputs: Sequence[str] | None = None, **thresholds: float
    ) -> dict[str, np.ndarray]:
        """Run the model.

        Args:
            image: Tensor[3, H, W] uint8 RGB.
            outputs: names of the outputs to compute; None for all.
            thresholds: inputs that differ from the defaults.
        """
        feeds = {"image": image.cpu().numpy()} | {
            name: np.array(value, np.float64) for name, value in thresholds.items()
        }
        names = list(outputs or self.outputs)
        return dict(zip(names, self.session.run(names, feeds, self._run_options), strict=True))


def read_metadata(entries: Mapping[str, str], source: str) -> dict[str, Any]:
    """Return the entries that `refine export` wrote, from all strings in the metadata of a file.

    Args:
        entries: metadata of the file.
        source: name of the file, for error messages.

    Raises:
        RefineError: the file is not from `refine export`, or from a newer version.
    """
    values: dict[str, Any] = {}
    for name, value in entries.items():
        with suppress(ValueError):  # tools that change a file add entries of their own
            values[name] = json.loads(value)
    if not isinstance(values.get("format"), int):
        raise RefineError(f"{source}: was not written by `refine export`; give a file that was")
    if values["format"] > FORMAT:
        raise RefineError(f"{source}: format {values['format']} is newer than this refine; update refine")
    return values


class OnnxNetwork(Network):
    """Network of an exported model.

    The thresholds of fusion can be changed, and so can the rule among those that the file has what they need for:
    a learned rule only if the model was exported with one. Images are resized inside the file.

    Args:
        path: ONNX file.

    Attributes:
        without_probabilities: the file, whose semantic map has no probabilities; see `check_probabilities`.

    Raises:
        RefineError: see `OnnxSession`.
    """

    def __init__(self, path: str | Path) -> None:
        self.session = OnnxSession(Path(path), str(path))
        entries = self.session.metadata
        missing = [name for name in ENTRIES if name not in entries]
        if missing:
            raise RefineError(f"{path}: metadata {missing[0]!r} is missing; export the model again")
        self.without_probabilities = [str(path)]
        self.device = torch.device("cpu")
        self.categories = Categories.from_json(entries["categories"], str(path))
        self.method = entries["method"]
        self.fusion = from_mapping(FusionConfig, entries["fusion"], f"{path}: fusion")
        self.test_size = None
        self.max_detections = entries["max_detections"]
        self._resized_to: tuple[int, int] = tuple(entries["test_size"])
        self._raw = [
            name for name in self.session.outputs if name.startswith(("instance_", "semantic_", "occlusion"))
        ]

    def predict(self, images: Sequence[Tensor], min_score: float = 0.0) -> list[Prediction]:
        """Predict images one at a time; see `Network.predict`.

        With an occlusion head, `features` of the instances are rows of O with the instance's own index before them.
        """
        predictions = []
        for n, image in enumerate(images):
            # All pairs that overlap, because the caller's `pair_overlap` is not known.
            arrays = self.session.run(image, self._raw, score_threshold=min_score, pair_overlap=0.0)
            tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
            floats = {name: value for name, value in tensors.items() if value.is_floating_point()}
            check_finite(floats, f"image {n + 1} of {len(images)}")
            size = (image.shape[1], image.shape[2])
            features = None
            if "occlusion" in tensors:
                own = torch.arange(len(tensors["occlusion"]), dtype=torch.float32)[:, None]
                features = torch.cat([own, tensors["occlusion"]], 1)[:, :, None, None]
            instances = Instances(
                size,
                tensors["instance_boxes"],
                tensors["instance_scores"],
                tensors["instance_labels"],
                roi_masks=tensors["instance_masks"],
                features=features,
            )
            predictions.append(
                Prediction(
                    instances,
                    tensors["semantic_labels"],
                    tensors["semantic_confidence"],
                    scale=fit_scale(size, *self._resized_to),
                )
            )
        return predictions

    def digest(self) -> str:
        """Return the digest of the network that the file was exported from."""
        digest: str = self.session.metadata["digest"]
        return digest

    def fusion_heads(self) -> dict[Head, Any]:
        """Return the occlusion that the file computed, if it was exported with a learned rule."""
        return {"occlusion": _occlusion} if self.method in HEADS else {}


def _occlusion(instances: Instances, pairs: Tensor) -> Tensor:
    """Return O of the instances, Tensor[N, N], from the rows in their `features`."""
    assert instances.features is not None
    own, rows = instances.features[:, 0, 0, 0].long(), instances.features[:, 1:, 0, 0]
    return rows[:, own]
