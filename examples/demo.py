"""Panoptic segmentation of real images with the shipped models.

    python examples/demo.py                          # sample images of installed packages, each with its model
    python examples/demo.py --model photographs IMAGE …

For each model, out/demo/MODEL gets panoptic.json and panoptic/*.png (COCO panoptic format) and overlays/*.jpg;
out/demo/index.png is a contact sheet of all images.
"""

import argparse
from importlib.util import find_spec
from pathlib import Path

from torch import Tensor

import refine
from refine.drawing.overlay import overlay, write_image
from refine.drawing.sheet import contact_sheet
from refine.formats.images import read_image
from refine.formats.writer import PredictionWriter

OUT = Path("out/demo")
SAMPLES = {
    "nuclei": [("mahotas", "demos/data/nuclear.png")],  # stained nuclei under a fluorescence microscope
    "photographs": [
        ("skimage", "data/astronaut.png"),
        ("skimage", "data/rocket.jpg"),
        ("matplotlib", "mpl-data/sample_data/grace_hopper.jpg"),
    ],
}
"""By model, sample images of other packages: package and path."""


def sample_path(package: str, path: str) -> Path:
    """Return the path of a file of an installed package."""
    spec = find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / path


def predict(model: str, files: list[Path]) -> list[tuple[Tensor, str]]:
    """Segment images and write the results; return each image and its overlay, with titles."""
    predictor, out, tiles = refine.Predictor(model), OUT / model, []
    with PredictionWriter(out, predictor.categories) as writer:
        for number, path in enumerate(files, 1):
            image = read_image(path)
            result = predictor(image)
            writer.add(number, path.name, result)
            drawn = overlay(image, result)
            write_image(out / "overlays" / f"{path.stem}.jpg", drawn)
            print(f"{path.name}, model {model}: {result.summary()}")
            tiles += [(image, path.name), (drawn, result.summary())]
    return tiles


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="*", type=Path, help="your images (default: the sample images)")
    parser.add_argument("--model", choices=SAMPLES, default="photographs", help="model for your images")
    options = parser.parse_args()
    jobs = {model: [sample_path(*sample) for sample in samples] for model, samples in SAMPLES.items()}
    if options.images:
        jobs = {options.model: options.images}
    tiles = [tile for model, files in jobs.items() for tile in predict(model, files)]
    images, titles = zip(*tiles, strict=True)
    write_image(OUT / "index.png", contact_sheet(images, titles, columns=min(4, len(tiles))))
    print(f"results in {OUT}, contact sheet in {OUT / 'index.png'}")


if __name__ == "__main__":
    main()
