"""What other precisions cost and save: PQ and CPU seconds per image of a model on a data set.

    OMP_NUM_THREADS=1 python benchmarks/precision.py nuclei --json panoptic_val.json --images images/val \
        --segments panoptic_val --files nuclei.onnx nuclei_int8.onnx

PyTorch in fp32 and bf16 and exported files (`refine export`, `benchmarks/quantize.py`) see the same images. The CPU
seconds include reading, fusion and measuring, which are alike for all.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from refine.data.build import build_dataset
from refine.data.config import DatasetConfig
from refine.experiments.machine import describe_machine
from refine.inference.evaluate import evaluate
from refine.inference.predictor import Predictor
from refine.runtime import find_device, prepare_cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="model")
    for name in ("json", "images", "segments"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--remap", help="JSON of category changes, see `refine evaluate`")
    parser.add_argument("--files", nargs="*", default=[], help="exported files of the model")
    parser.add_argument("--max-images", type=int, help="use the first ones (default: all)")
    options = parser.parse_args()
    prepare_cpu(None)
    paths = {name: getattr(options, name) for name in ("images", "json", "segments", "remap")}
    dataset = build_dataset(DatasetConfig(**paths))
    count = min(options.max_images or len(dataset), len(dataset))
    predictors = {
        "PyTorch, fp32": Predictor(options.checkpoint, device="cpu"),
        "PyTorch, bf16": Predictor(options.checkpoint, device="cpu", precision="bf16"),
        **{Path(file).name: Predictor(file, device="cpu") for file in options.files},
    }
    print(json.dumps(describe_machine(find_device("cpu")) | {"images": count}))
    print(f"{'':24} {'CPU s':>6} {'ratio':>6} {'PQ':>6} {'things':>6} {'stuff':>6}")
    first = None
    for name, predictor in predictors.items():
        predictor.predict_raw([dataset[0][0]])
        began = time.process_time()
        metrics = evaluate(predictor, dataset, max_images=options.max_images).metrics
        seconds = (time.process_time() - began) / count
        first = first or seconds
        scores = " ".join(f"{100 * metrics[key]:6.2f}" for key in ("PQ", "PQ_things", "PQ_stuff"))
        print(f"{name:24} {seconds:6.3f} {seconds / first:6.2f} {scores}", flush=True)


if __name__ == "__main__":
    main()
