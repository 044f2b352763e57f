"""An exported model against PyTorch: seconds per image and agreement, on images of a folder.

    refine export nuclei -o nuclei.onnx
    OMP_NUM_THREADS=1 python benchmarks/exported.py nuclei nuclei.onnx IMAGES --images 6 --rounds 3

Both run in turns with the threads of PyTorch. "fused by refine" is `Predictor(FILE)`: network by ONNX Runtime,
fusion by refine; "whole file" is everything in ONNX Runtime. `--variants` adds PyTorch in bf16, and the whole file
with options of ONNX Runtime that differ from its defaults; `--other` adds another file, such as a quantised one.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from turns import take_turns

from refine.experiments.machine import describe_machine, name_machine
from refine.export.verify import compare
from refine.formats.images import read_image
from refine.inference.predictor import Predictor
from refine.networks.onnx import OnnxSession


def sessions(path: str) -> dict[str, Any]:
    """Return sessions of an ONNX file by name, each with one option that differs from the default."""
    import onnxruntime

    sessions = {}
    for name, value in {
        "graph_optimization_level": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,  # no NCHWc layout
        "enable_cpu_mem_arena": False,
        "enable_mem_pattern": False,
    }.items():
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads, settings.log_severity_level = torch.get_num_threads(), 3
        setattr(settings, name, value)
        sessions[f"{name} {value}"] = onnxruntime.InferenceSession(path, settings, ["CPUExecutionProvider"])
    return sessions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", help="model that was exported")
    parser.add_argument("file", help="its ONNX file")
    parser.add_argument("folder", help="folder of images")
    parser.add_argument("--images", type=int, default=6, help="number of images, evenly spaced (default: 6)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--variants", action="store_true", help="also bf16, and other options of ONNX Runtime")
    parser.add_argument("--other", help="another ONNX file, such as a quantised one")
    options = parser.parse_args()
    paths = sorted(path for path in Path(options.folder).iterdir() if path.is_file())
    paths = paths[:: max(1, len(paths) // options.images)][: options.images]
    images = [(path.name, read_image(path)) for path in paths]
    native, exported = Predictor(options.checkpoint, device="cpu"), Predictor(options.file)
    whole = OnnxSession(Path(options.file), options.file)

    def each(run: Callable[[Tensor], Any]) -> Callable[[], None]:
        return lambda: [run(image) for _, image in images] and None

    runs = {"PyTorch": each(native), "fused by refine": each(exported), "whole file": each(whole.run)}
    if options.variants:
        runs["PyTorch, bf16"] = each(Predictor(options.checkpoint, device="cpu", precision="bf16"))
        for name, session in sessions(options.file).items():
            runs[name] = each(lambda image, session=session: session.run(None, {"image": image.numpy()}))
    if options.other:
        runs[Path(options.other).name] = each(OnnxSession(Path(options.other), options.other).run)
    print(name_machine(describe_machine(torch.device("cpu"))), f"threads: {torch.get_num_threads()}")
    times = take_turns(runs, options.rounds)
    for name, figures in times.items():
        print(f"{name}: {figures['cpu_s'] / len(images):.3f} CPU s per image, ratio {figures['ratio_cpu']:.2f}")
    for agreement in compare(native, whole.run, images):
        print(agreement)


if __name__ == "__main__":
    main()
