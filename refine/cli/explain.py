"""refine explain"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from refine.cli.options import add_image_options, fusion_changes, image_options
from refine.cli.pictures import add_arguments, finish, for_each
from refine.errors import RefineError
from refine.fusion.config import HEADS, Method

if TYPE_CHECKING:
    from refine.fusion.explain import Explanation


def run(arguments: Sequence[str], prog: str, description: str) -> None:
    parser = argparse.ArgumentParser(prog, description=description)
    add_arguments(parser, "folder for NAME.png and NAME.json of each picture")
    add_image_options(parser)
    options = parser.parse_args(arguments)

    from refine.drawing.explanation import explanation_sheet
    from refine.drawing.overlay import write_picture
    from refine.files import write_json
    from refine.formats.images import list_images, read_image
    from refine.fusion.explain import explain
    from refine.inference.predictor import Predictor, possible_methods

    reading = image_options(options)
    files = list_images(options.source)
    predictor = Predictor(options.checkpoint, device=options.device, fusion=fusion_changes(options))
    methods = possible_methods(predictor.model)
    if len(methods) < len(get_args(Method)):
        print(_left_out(methods))
    targets: dict[Path, Path] = {}

    def explain_one(path: Path) -> str:
        target = _target(path, Path(options.out), targets, files)
        image = read_image(path, options=reading, tell=print)
        told = explain(
            predictor.predict_raw([image])[0],
            categories=predictor.categories,
            methods=methods,
            config=predictor.fusion,
            **predictor.fusion_heads(),
        )
        write_picture(target, explanation_sheet(image, told))
        write_json(target.with_suffix(".json"), {"file_name": path.name} | told.to_json(), indent=1)
        return _summary(told)

    finish(for_each(files, explain_one), files, options.out, "explanations")


def _left_out(methods: Sequence[Method]) -> str:
    """The rules that a model cannot follow, and how it learns to."""
    left_out = ", ".join(method for method in get_args(Method) if method not in methods)
    parts = dict.fromkeys(HEADS[method] for method in get_args(Method) if method not in methods)
    heads = {"ranking": "--model.ranking true", "occlusion": "--model.occlusion '{}'"}
    return (
        f"left out: {left_out}, for the model has no {' and no '.join(parts)} head; to train it, give its config "
        f"and data to refine train with --init MODEL {' '.join(heads[part] for part in parts)} "
        f"--optim.train_only '[{', '.join(parts)}]'"
    )


def _target(path: Path, out: Path, targets: dict[Path, Path], files: Sequence[Path]) -> Path:
    """Where the explanation of a picture goes; noted in `targets`, which pictures went where."""
    target = out / f"{path.stem}.png"
    if target in targets:
        raise RefineError(f"{path}: would be written as {target}, as {targets[target]} is; rename one")
    if target.resolve() in (file.resolve() for file in files):
        raise RefineError(f"{path}: its explanation would overwrite the picture {target}; name another folder")
    targets[target] = path
    return target


def _summary(told: Explanation) -> str:
    differing = (f"{method} {int(told.differs(method).sum())}" for method in told.front)
    return (
        f"instances: {len(told.instances)}, contested pixels: {int((told.covers > 1).sum())}, pairs to decide: "
        f"{int(told.asked.triu().sum())}; pixels that differ: {', '.join(list(differing)[1:])}"
    )
