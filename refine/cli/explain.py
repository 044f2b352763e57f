"""refine explain"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, get_args

from refine import __version__
from refine.cli.images import Failure, add_arguments, find_images, finish, for_each, note, one_by_one
from refine.cli.networks import check_model, note_remarks
from refine.cli.options import (
    add_image_options,
    check_out_folder,
    fusion_changes,
    image_options,
    refuse_overwriting,
)
from refine.cli.parser import Parser
from refine.formats.image_list import ImageFile, result_names
from refine.fusion.config import HEADS, OWN_MERGE, Method

if TYPE_CHECKING:
    from refine.fusion.explain import Explanation


def run(arguments: Sequence[str], prog: str, description: str) -> None:
    parser = Parser(prog, description=description)
    add_arguments(parser, "folder for NAME.png and NAME.json of each image")
    add_image_options(parser, all_pages=True)
    options = parser.parse_args(arguments)
    check_model(options)
    reading = image_options(options)
    files, out = find_images(options), Path(options.out)
    _check_out(out, files, options.source)

    from refine.drawing.explanation import explanation_sheet
    from refine.drawing.series import Series
    from refine.files import write_json
    from refine.formats.images import read_image
    from refine.formats.result_files import remove
    from refine.fusion.explain import explain
    from refine.inference.limits import ELSEWHERE
    from refine.inference.predictor import Predictor
    from refine.runtime import prepare_cpu
    from refine.storage import local_copy

    prepare_cpu(options.threads)
    fusion = fusion_changes(options)
    predictor = Predictor(options.model, device=options.device, fusion=fusion, precision=options.precision)
    note_remarks(predictor.network)
    methods = [method for method in predictor.methods if method != OWN_MERGE]
    if len(methods) < len(get_args(Method)):
        print(_left_out(methods))
    limits = predictor.limits()

    series = Series(out, "refine explain", f"refine {__version__}, model {options.model}")

    def explain_one(file: ImageFile) -> str:
        name = PurePath(file.name).with_suffix(".png").as_posix()
        record_path = (out / name).with_suffix(".json")
        if series.wrote(name):  # an earlier explanation, which would remain if the image cannot be read now
            remove(record_path)
            remove(out / name)
        with local_copy(file.path) as path:
            image = read_image(path, options=file.reading(reading), notify=note)
        raw = predictor.predict_raw([image])[0]
        limits.add(file.name, raw, predictor.fusion.score_threshold)
        explanation = explain(
            raw,
            categories=predictor.categories,
            methods=methods,
            config=predictor.fusion,
            **predictor.fusion_heads(),
        )
        series.write(name, explanation_sheet(image, explanation))
        record = {"file_name": file.name, "model": str(options.model)} | explanation.to_json()
        write_json(record_path, record, indent=1)
        return f"{_summary(explanation)}; model: {options.model}"

    failures: list[Failure] = []
    for_each(files, one_by_one(files, explain_one), str, failures)
    for remark in limits.remarks(ELSEWHERE).values():
        note(remark)
    finish(failures, files, options.out, f"explanations of model {options.model}")


def _check_out(out: Path, files: Sequence[ImageFile], sources: Sequence[str]) -> None:
    """Raise RefineError if an explanation would replace an input, or lie beside one."""
    written = [out / f"{name}{suffix}" for name in result_names(files) for suffix in (".png", ".json")]
    refuse_overwriting("--out: its", written, (file.path for file in files))
    inputs = {file.path.parent.resolve() for file in files if isinstance(file.path, Path)}
    for folder in {path.parent for path in written}:  # NAME.json may be the annotation of an image
        check_out_folder(folder, [*sources, *([folder] if folder.resolve() in inputs else [])])


def _left_out(methods: Sequence[Method]) -> str:
    """Name the rules for which a model has no head, and how to train one."""
    left_out = ", ".join(method for method in get_args(Method) if method not in methods)
    parts = dict.fromkeys(HEADS[method] for method in get_args(Method) if method not in methods)
    heads = {"ranking": "--model.ranking true", "occlusion": "--model.occlusion '{}'"}
    any_model = "; refine train-occlusion trains an occlusion head for any model" if "occlusion" in parts else ""
    return (
        f"left out: {left_out}, because the model has no {' and no '.join(parts)} head; to train it, run refine "
        f"train with the model's config and data and --init MODEL {' '.join(heads[part] for part in parts)} "
        f"--optim.train_only '[{', '.join(parts)}]'{any_model}"
    )


def _summary(explanation: Explanation) -> str:
    differing = (f"{method} {int(explanation.differs(method).sum())}" for method in explanation.front)
    return (
        f"instances: {len(explanation.instances)}, contested pixels: {int((explanation.covers > 1).sum())}, "
        f"pairs to decide: {int(explanation.overlapping.triu().sum())}; "
        f"pixels that differ: {', '.join(list(differing)[1:])}"
    )
