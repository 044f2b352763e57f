"""REFINE against other methods for cell nuclei, with equal training budgets.

    python benchmarks/nuclei.py --minutes 20 --methods refine unet maskrcnn --seed 0 --out runs/nuclei_baselines
    pip install stardist tensorflow-cpu 'cellpose<4'  # in an environment of its own, with refine
    python benchmarks/nuclei.py --minutes 20 --methods stardist cellpose --seed 0 --out runs/nuclei_programs

REFINE, the U-Net with watershed and torchvision's Mask R-CNN are trained by the same code with the images,
augmentation, batches, ImageNet backbone, optimizer and EMA of configs/dsb2018.yaml until `--minutes` are used up:
CPU time of the process over all threads on a CPU, wall time on a GPU. Reading and augmentation count, evaluation
does not. The learning rate follows the fraction of the budget that is used, so that each method makes as many
updates as it can and its schedule is completed. StarDist and Cellpose are trained from random weights by their own
code (`by_stardist.py`, `by_cellpose.py`), on the same images for the same CPU time. `shipped` measures the shipped
nuclei model, which was trained for longer, and on the held-out images too.

A few originals of the training split (every 16th) are held out from training to choose the thresholds of the
watershed, StarDist and Cellpose; the other methods use those of the config. All methods are evaluated on the whole
validation split; REFINE, the U-Net and Mask R-CNN at the same test size, the others at their own.

A method is not trained again if OUT/METHOD.json exists. OUT/nuclei.md contains the table.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from cells import F1, Fitted
from held_out import Part, split
from maskrcnn import MaskRCNN
from torch import Tensor, nn
from unet import UNet, Watershed, to_panoptic, tune

from refine.checkpoint.folder import SavedModel
from refine.data.build import build_dataset
from refine.data.loader import PanopticDataset
from refine.drawing.overlay import write_image
from refine.drawing.sheet import contact_sheet
from refine.errors import RefineError
from refine.evaluation.interval import paired_interval, read_counts, write_counts
from refine.experiments.machine import describe_machine, name_machine
from refine.files import read_json, write_json, write_text
from refine.inference.drawings import side_by_side, to_result
from refine.inference.evaluate import Evaluation
from refine.inference.measures import Quality
from refine.inference.predictor import Predictor
from refine.modeling.model import PanopticModel
from refine.modeling.pretrained import load_pretrained
from refine.runtime import Processes
from refine.structures import Categories, PanopticResult
from refine.training.batches import training_parts
from refine.training.config import RunConfig, load_run
from refine.training.update import TrainingModule

METHODS = {
    "refine": "REFINE",
    "unet": "U-Net, watershed",
    "maskrcnn": "Mask R-CNN (torchvision)",
    "stardist": "StarDist",
    "cellpose": "Cellpose",
    "shipped": "REFINE, shipped model",
}
PROGRAMS = {"stardist": "stardist tensorflow-cpu", "cellpose": "'cellpose<4'"}
"""Packages to install for each program that is trained by its own code, in `by_NAME.py`."""

DRAWN = 4
"""Number of validation images that are drawn."""

Predict = Callable[[Tensor], PanopticResult]
"""Function from Tensor[3, H, W] uint8 RGB to a result of the same size."""


def build(name: str, config: RunConfig, categories: Categories) -> nn.Module:
    """Build an untrained network on the ImageNet backbone."""
    torch.manual_seed(config.seed)
    if name == "refine":
        model = PanopticModel(config.model, categories.num_things, len(categories))
    elif name == "unet":
        model = UNet(config.model)
    else:
        model = MaskRCNN(config, categories.num_things)
    load_pretrained(model.backbone, config.model.backbone)
    return model


def train(
    model: nn.Module, config: RunConfig, dataset: PanopticDataset, minutes: float
) -> tuple[nn.Module, dict[str, Any]]:
    """Train until the budget is used up.

    Returns:
        The network with averaged weights, and `updates` and `minutes`.
    """
    device, optim = torch.device(config.device), config.optim
    group = Processes(0, 1, device)
    module = TrainingModule(model.to(device), config, group)  # type: ignore[arg-type]  # same methods
    batches = training_parts(dataset, config, group, 0)
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    warm_up, step, next_report = optim.warmup_steps / optim.max_steps, 0, 0.0
    began = clock()
    while (used := (clock() - began) / 60) < minutes:
        if step:  # let the schedule end with the budget, at the speed so far
            optim.max_steps = round(step * minutes / used)
            optim.warmup_steps = max(1, round(warm_up * optim.max_steps))
        losses = module.update(next(batches))
        step += 1
        if used >= next_report:
            loss, rate = losses["loss"].item(), losses["lr"].item()
            print(f"  {used:.1f} of {minutes:g} min, update {step}: loss {loss:.3f}, rate {rate:.1e}", flush=True)
            next_report += minutes / 10
    return module.learner.evaluated.eval(), {"updates": step, "minutes": used}


def predictor(name: str, model: Any, config: RunConfig, held_out: Part) -> tuple[Predict, dict[str, Any]]:
    """Return the prediction function of a trained network, and the thresholds tuned for it."""
    categories, size = held_out.categories, (config.eval.short, config.eval.long)
    if name == "refine":
        saved = SavedModel(model, categories, size, config.eval.method, config.eval.fusion)
        return Predictor(saved, device=config.device), {}
    if name == "maskrcnn":
        return partial(model.panoptic, categories=categories, fusion=config.eval.fusion), {}
    watershed = tune(model, held_out, size)
    predict = partial(by_watershed, model=model, watershed=watershed, size=size, categories=categories)
    return predict, asdict(watershed)


def by_watershed(
    image: Tensor, model: UNet, watershed: Watershed, size: tuple[int, int], categories: Categories
) -> PanopticResult:
    """Predict an image, Tensor[3, H, W] uint8 RGB, by U-Net and watershed."""
    return to_panoptic(watershed(model.probabilities(image, size)), image.shape[1:], categories)


def fit(name: str, config: RunConfig, options: argparse.Namespace) -> Fitted:
    """Train a method, or load the shipped model."""
    if name == "shipped":
        shipped = Predictor("nuclei", device=options.device)
        return Fitted(shipped, parameters(shipped.model))
    trained, held_out = split(config)
    print(f"{METHODS[name]}: {len(trained)} images", flush=True)
    if name in PROGRAMS:
        return program(name).fit(trained, held_out, options.minutes, options.seed, options.out)
    model = build(name, config, trained.categories)
    print(f"  {parameters(model) / 1e6:.1f} M parameters", flush=True)
    model, spent = train(model, config, trained, options.minutes)
    predict, tuned = predictor(name, model, config, held_out)
    return Fitted(predict, parameters(model), chosen=tuned, **spent)


def program(name: str) -> ModuleType:
    """Import the adapter of a program of `PROGRAMS`."""
    try:
        return import_module(f"by_{name}")
    except ModuleNotFoundError as error:
        raise RefineError(f"--methods {name}: {error}; pip install {PROGRAMS[name]}") from error


def measure(
    predict: Predict, dataset: PanopticDataset, limit: int | None
) -> tuple[Evaluation, dict[str, float], dict[str, Tensor]]:
    """Evaluate a method on the first `limit` images (None: all).

    Returns:
        PQ; F1 of nuclei by "F1 at T" for IoU T, and "seconds" of CPU time per image; drawings of a few images by
        file name.
    """
    categories, count = dataset.categories, min(limit or len(dataset), len(dataset))
    measured, f1, seconds, drawn = Quality(), F1(), 0.0, {}
    measured.reset(categories)
    for n in range(count):
        image, segments = dataset[n]
        began = time.process_time()
        result = predict(image)
        seconds += time.process_time() - began
        truth = to_result(segments, categories)
        f1.update(truth, result)
        image_id, name = dataset.name(n)
        before = measured.quality.state()
        measured.quality.update(
            truth.segment_ids.numpy(),
            truth.segments,
            result.segment_ids.cpu().numpy(),
            result.segments,
            image_id=image_id,
            file_name=name,
        )
        measured.counts.append(measured.quality.state() - before)
        if n % -(-count // DRAWN) == 0:
            drawn[name] = side_by_side(image, truth, result)
    return Evaluation([measured]), {**f1.compute(), "seconds": seconds / count}, drawn


def run(name: str, options: argparse.Namespace, settings: dict[str, Any]) -> None:
    """Train and evaluate one method; write OUT/NAME.png and .npz, and last .json, which marks it as finished."""
    config = load_run(options.config, [f"--seed={options.seed}", f"--device={options.device}"])
    # CPU time of workers would not be counted.
    config.workers = 0 if torch.device(options.device).type == "cpu" else 4
    assert config.data.val is not None
    validation = build_dataset(config.data.val)
    fitted = fit(name, config, options)
    evaluation, more, drawn = measure(fitted.predict, validation, options.max_images)
    write_counts(options.out / f"{name}.npz", evaluation.counts)
    sheet = contact_sheet(list(drawn.values()), list(drawn), columns=1, width=1200)
    write_image(options.out / f"{name}.png", sheet)
    result = {
        "settings": settings,
        "metrics": evaluation.metrics | more,
        "images": len(evaluation.report.images),
        **{key: value for key, value in vars(fitted).items() if key != "predict"},
        "machine": describe_machine(torch.device(options.device)),
        "command": shlex.join(["python", *sys.argv]),
    }
    write_json(options.out / f"{name}.json", result, indent=1)


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def table(folder: Path) -> str:
    """Return a Markdown table of all finished methods."""
    results = {name: read_json(folder / f"{name}.json") for name in METHODS if (folder / f"{name}.json").is_file()}
    columns = ["PQ", "PQ_things", "SQ_things", "RQ_things", "PQ_stuff", *F1().compute()]
    heads = ["", "PQ", "PQ nucleus", "SQ", "RQ", "PQ background", *columns[5:], "CPU s per image"]
    heads += ["updates", "minutes", "M parameters", "REFINE − it: PQ", "PQ nucleus"]
    lines = [heads, ["-"] * len(heads)]
    for name, result in results.items():
        row = [METHODS[name], *(f"{100 * result['metrics'][c]:.1f}" for c in columns)]
        row += [f"{result['metrics']['seconds']:.2f}", str(result["updates"]), f"{result['minutes']:.1f}"]
        row.append(f"{result['parameters'] / 1e6:.1f}")
        base = results.get("refine") if name != "refine" else None
        lines.append([*row, *("" if base is None else difference(folder, name, m) for m in ("PQ", "PQ_things"))])
    machines = sorted({name_machine(result["machine"]) for result in results.values()})
    rows = ["| " + " | ".join(line) + " |" for line in lines]
    return "\n".join([*rows, "", f"Percent; differences with their 95% interval. {'; '.join(machines)}.", ""])


def difference(folder: Path, name: str, metric: str) -> str:
    """Return the difference of REFINE to another method, with its bootstrap interval over the validation images."""
    own, other = (read_counts(folder / f"{n}.npz") for n in ("refine", name))
    values = [read_json(folder / f"{n}.json")["metrics"][metric] for n in ("refine", name)]
    interval = paired_interval([own], [other], metric)
    between = "" if interval is None else f" ({100 * interval[0]:+.1f} to {100 * interval[1]:+.1f})"
    return f"{100 * (values[0] - values[1]):+.1f}{between}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/dsb2018.yaml", help="(default: configs/dsb2018.yaml)")
    parser.add_argument(
        "--methods",
        nargs="+",
        choices=list(METHODS),
        default=["refine", "unet", "maskrcnn"],
        help="(default: %(default)s)",
    )
    parser.add_argument("--minutes", type=float, default=20, help="training budget per method (default: 20)")
    parser.add_argument("--seed", type=int, default=0, help="(default: 0)")
    parser.add_argument("--device", default="cpu", help="(default: cpu)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    parser.add_argument("--max-images", type=int, help="number of validation images (default: all)")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/nuclei_baselines"), help="(default: runs/nuclei_baselines)"
    )
    options = parser.parse_args(arguments)
    if options.device != "cpu" and not PROGRAMS.keys().isdisjoint(options.methods):
        raise RefineError(f"--device {options.device}: {' and '.join(PROGRAMS)} are measured on the CPU only")
    torch.set_num_threads(options.threads)
    settings = {k: getattr(options, k) for k in ("config", "minutes", "seed", "device", "threads", "max_images")}
    for name in METHODS:
        path = options.out / f"{name}.json"
        if path.is_file() and read_json(path)["settings"] != settings:
            raise RefineError(f"{path}: was written with other settings; choose another --out")
    for name in options.methods:
        if not (options.out / f"{name}.json").is_file():
            run(name, options, settings)
    text = table(options.out)
    write_text(options.out / "nuclei.md", text)
    print(text)


if __name__ == "__main__":
    main()
