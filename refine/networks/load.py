"""Networks by name, folder or file."""

from __future__ import annotations

from pathlib import Path

import torch

from refine.checkpoint.find import ONNX, find_model, is_of_transformers
from refine.checkpoint.folder import SavedModel, load_model
from refine.errors import RefineError
from refine.networks.choice import ModelChoice
from refine.networks.hub.categories import ClassMap
from refine.networks.native import NativeNetwork, Precision
from refine.networks.network import Network
from refine.runtime import find_device
from refine.structures import Categories


def load_network(
    source: str | Path | ModelChoice | SavedModel | Network,
    *,
    device: str | torch.device | None = None,
    precision: Precision = "32",
    compiled: bool = False,
    categories: Categories | None = None,
    class_map: ClassMap | None = None,
    combined: bool = False,
) -> Network:
    """Load a network, or prepare a loaded model.

    Args:
        source: name, folder or file of a model (see `find_model`), several by name, a loaded model, or a network,
            which is returned.
        device, precision, compiled: as for `NativeNetwork`, except that None stands for the GPU if there is one
            when the model is loaded from a file.
        categories, class_map, combined: for models of transformers, see `load_hub_network`.

    Raises:
        RefineError: the model or device does not exist or is broken, or an option is given with a network.
    """
    if isinstance(source, ModelChoice):
        return source.load(device, precision, compiled)
    if isinstance(source, Network):
        if device is not None or precision != "32" or compiled:
            raise RefineError("device, precision, compiled: give them when you create the network, not with it")
        return source
    if isinstance(source, SavedModel):
        return NativeNetwork(source, device, precision, compiled)
    folder = find_model(source)
    if folder.suffix == ONNX:
        own = precision == "32" and not compiled and categories is None and class_map is None
        return _exported(folder, device, own)
    if is_of_transformers(folder):
        from refine.networks.hub.load import load_hub_network

        return load_hub_network(folder, str(source), device, precision, compiled, categories, class_map, combined)
    if not combined and (categories is not None or class_map is not None):
        raise RefineError(f"{source}: knows its categories; --categories and --class-map are for other models")
    saved = load_model(folder)
    saved.model.to(find_device(device))
    return NativeNetwork(saved, None, precision, compiled, folded=True)


def _exported(path: Path, device: str | torch.device | None, own: bool) -> Network:
    from refine.networks.onnx import OnnxNetwork

    if not own or (device is not None and torch.device(device).type != "cpu"):
        raise RefineError(
            f"{path}: exported models run on the CPU, in their own precision and with their own classes; leave out "
            f"device, precision, compiled, categories and class map"
        )
    return OnnxNetwork(path)
