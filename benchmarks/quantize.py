"""An exported model with its convolutions in INT8, by ONNX Runtime's static quantisation, or in half precision.

    refine export nuclei -o nuclei.onnx
    python benchmarks/quantize.py nuclei.onnx TRAINING_IMAGES nuclei_int8.onnx --images 8
    python benchmarks/quantize.py nuclei.onnx TRAINING_IMAGES nuclei_fp16.onnx --half
    python benchmarks/precision.py nuclei --files nuclei_int8.onnx …      # and benchmarks/exported.py --other

INT8 weights have one scale per channel, activations the range that they have on the calibration images. `--half`
converts everything that ONNX Runtime can compute in half precision, and needs no images.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.transformers.float16 import convert_float_to_float16

from refine.formats.images import read_image


class Images(CalibrationDataReader):
    """Calibration images, read one at a time."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = iter(paths)

    def get_next(self) -> dict[str, np.ndarray] | None:
        path = next(self.paths, None)
        return None if path is None else {"image": read_image(path).numpy()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", help="ONNX file of `refine export`")
    parser.add_argument("folder", type=Path, help="folder of calibration images")
    parser.add_argument("out", help="ONNX file to write")
    parser.add_argument("--images", type=int, default=8, help="number of images, evenly spaced (default: 8)")
    parser.add_argument("--half", action="store_true", help="half precision instead of INT8")
    options = parser.parse_args()
    if options.half:
        onnx.save(convert_float_to_float16(onnx.load(options.file), keep_io_types=True), options.out)
        print(f"written to {options.out}")
        return
    paths = sorted(path for path in options.folder.iterdir() if path.is_file())
    paths = paths[:: max(1, len(paths) // options.images)][: options.images]
    quantize_static(
        options.file,
        options.out,
        Images(paths),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=["Conv"],
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    _restore_inputs(onnx.load(options.file), options.out)
    print(f"written to {options.out}")


def _restore_inputs(source: onnx.ModelProto, path: str) -> None:
    """Restore the thresholds that a file's fusion rule does not use, which the quantisation removes."""
    model = onnx.load(path)
    kept = {value.name for value in model.graph.input}
    missing = {value.name: value for value in source.graph.input if value.name not in kept}
    model.graph.input.extend(missing.values())
    model.graph.initializer.extend(value for value in source.graph.initializer if value.name in missing)
    onnx.save(model, path)


if __name__ == "__main__":
    main()
