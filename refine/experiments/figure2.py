"""The paper's Figure 2: results of several models for the same images, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePath

from refine.data.loader import PanopticDataset
from refine.drawing.overlay import overlay
from refine.drawing.series import Series
from refine.drawing.sheet import contact_sheet
from refine.inference.drawings import to_result
from refine.inference.predictor import Predictor

TITLE = 50
"""Number of characters that fit above a result."""


def draw_figure(
    checkpoints: Sequence[str],
    dataset: PanopticDataset,
    out: Path,
    max_images: int | None = None,
    device: str = "auto",
) -> list[Path]:
    """Draw one sheet per image: image, ground truth, and the result of each model by its own fusion rule.

    The sheets of an earlier figure in the folder are removed.

    Args:
        checkpoints: names or folders of models, such as a baseline and REFINE; see `load_model`.
        dataset: data set with the categories of the models.
        out: folder for the sheets, named as the images.
        max_images: maximum number of images; the first ones are used.
        device: "cpu", "cuda" or "auto".

    Returns:
        Paths of the sheets.

    Raises:
        RefineError: a checkpoint does not exist, its categories are not those of the data set, or a file cannot be
            written.
    """
    predictors = [Predictor(name, device=None if device == "auto" else device) for name in checkpoints]
    titles = ["image", "ground truth"]
    for name, predictor in zip(checkpoints, predictors, strict=True):
        predictor.categories.check_equal(dataset.categories, f"the model {name}", "the data set")
        titles.append(f"{name}, {predictor.method}"[-TITLE:])
    series, paths = Series(out, "refine reproduce figure2", ", ".join(checkpoints)), []
    series.remove()
    for n in range(min(max_images or len(dataset), len(dataset))):
        image, truth = dataset[n]
        shown = to_result(truth.named(len(dataset.categories)), dataset.categories)
        results = [shown, *(predictor(image) for predictor in predictors)]
        sheet = contact_sheet([image, *(overlay(image, r) for r in results)], titles, columns=len(titles))
        paths.append(series.write(PurePath(dataset.name(n)[1]).with_suffix(".png").as_posix(), sheet))
    return paths
