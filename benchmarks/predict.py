"""Speed of `refine predict` relative to the network alone, in turns within one run.

python benchmarks/predict.py --checkpoint nuclei data/nuclei/images/val
python benchmarks/predict.py --checkpoint photographs --device cuda --batch 8 --precision bf16 images

"network" runs `Predictor.predict_raw` on images that are decoded already, in batches as large as those of the
pipeline; "pipeline" does the whole work of the command: reading, network, fusion, drawing and writing. "one by one"
is the same work without threads. At 0.900 the pipeline reaches 90% of the speed of the network alone. "reading",
"fusion" and "finishing" (which includes fusion) are parts of it. CPU times can be compared on a busy machine too.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator

from turns import take_turns

from refine.experiments.machine import describe_machine
from refine.formats.image_list import ImageFile, list_images
from refine.formats.writer import PredictionWriter
from refine.inference.image_job import ImageJob, ReadImage
from refine.inference.job_settings import JobSettings
from refine.inference.pipeline import Workers, run_pipeline
from refine.inference.predictor import Predictor
from refine.runtime import prepare_cpu
from refine.savers import find_savers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="+", help="images, folders or patterns")
    parser.add_argument("--checkpoint", default="nuclei", help="model (nuclei)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (cpu)")
    parser.add_argument("--precision", choices=("32", "bf16", "fp16"), default="32", help="(32)")
    parser.add_argument("--batch", type=int, help="images per batch (1 on a CPU, else 8)")
    parser.add_argument("--images", type=int, default=16, help="images per round, the first of the source (16)")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds (5)")
    parser.add_argument("--threads", type=int, help="threads of torch (one per core)")
    parser.add_argument("--save", default="coco,overlay", help="formats to write (coco,overlay)")
    options = parser.parse_args()
    prepare_cpu(options.threads)
    files = list_images(options.source)[: options.images]
    settings = JobSettings(options.checkpoint, device=options.device)
    predictor = Predictor(options.checkpoint, device=options.device, precision=options.precision)
    workers = Workers.on(predictor.device.type, options.batch)
    with tempfile.TemporaryDirectory() as folder:
        writer = PredictionWriter(folder, predictor.categories, savers=find_savers(options.save))
        job = ImageJob(settings, predictor, writer)
        images = [job.read(file) for file in files]
        batches = list(_batches(images, job, workers.batch))
        predictions = [job.predict([image])[0] for image in images]
        times = take_turns(
            {
                "network": lambda: [job.predict(batch) for batch in batches],
                "one by one": lambda: [_whole(job, file) for file in files],
                "pipeline": _pipeline(files, job, workers),
                "reading": lambda: [job.read(file) for file in files],
                "fusion": lambda: [predictor.fuse(prediction) for prediction in predictions],
                "finishing": lambda: [
                    job.discard(job.finish(*parts)) for parts in zip(files, images, predictions, strict=True)
                ],
            },
            options.rounds,
            predictor.device,
        )
    for name, numbers in times.items():
        speed, cpu = len(files) / numbers["wall_s"], numbers["cpu_s"] / len(files)
        print(
            f"{name:12} {speed:7.2f} images/s, {1 / numbers['ratio_wall']:.3f} of the network's speed; "
            f"{cpu:.3f} CPU s per image, {numbers['ratio_cpu']:.3f} of the network's"
        )
    machine = describe_machine(predictor.device) | {"images": len(files), "workers": vars(workers)}
    print(json.dumps({"arguments": vars(options), "machine": machine, "times": times}))


def _batches(images: list[ReadImage], job: ImageJob, size: int) -> Iterator[list[ReadImage]]:
    """Yield batches of images of one group."""
    groups: dict[object, list[ReadImage]] = {}
    for image in images:
        groups.setdefault(job.group(image), []).append(image)
    for group in groups.values():
        yield from (group[n : n + size] for n in range(0, len(group), size))


def _whole(job: ImageJob, file: ImageFile) -> None:
    image = job.read(file)
    job.discard(job.finish(file, image, job.predict([image])[0]))


def _pipeline(files: list[ImageFile], job: ImageJob, workers: Workers) -> Callable[[], None]:
    def run() -> None:
        for _, outcome in run_pipeline(files, job, workers):
            if isinstance(outcome, Exception):
                raise outcome
            job.discard(outcome)

    return run


if __name__ == "__main__":
    main()
