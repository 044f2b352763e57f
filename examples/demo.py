"""The main job on the shipped models: panoptic results of real pictures that come with packages.

    python examples/demo.py                          # micrographs and photographs, each with its model
    python examples/demo.py --model photographs PICTURE …

For each model out/demo/MODEL gets panoptic.json and panoptic/*.png (COCO's format) and overlays/*.jpg;
out/demo/index.png is a sheet of all of them.
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
PACKAGED = {
    "nuclei": [("mahotas", "demos/data/nuclear.png")],  # stained nuclei under a fluorescence microscope
    "photographs": [
        ("skimage", "data/astronaut.png"),
        ("skimage", "data/rocket.jpg"),
        ("matplotlib", "mpl-data/sample_data/grace_hopper.jpg"),
    ],
}
"""By model: pictures that lie inside a package's wheel."""


def packaged(package: str, path: str) -> Path:
    spec = find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / path


def predict(model: str, files: list[Path]) -> list[tuple[Tensor, str]]:
    """Write the results of some pictures; gives each picture and its overlay, with titles."""
    predictor, out, tiles = refine.Predictor(model), OUT / model, []
    with PredictionWriter(out, predictor.categories) as writer:
        for number, path in enumerate(files, 1):
            image = read_image(path)
            result = predictor(image)
            writer.add(number, path.name, result)
            picture = overlay(image, result)
            write_image(out / "overlays" / f"{path.stem}.jpg", picture)
            print(f"{path.name}, model {model}: {result.summary()}")
            tiles += [(image, path.name), (picture, result.summary())]
    return tiles


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", nargs="*", type=Path, help="your own (those of the packages)")
    parser.add_argument("--model", choices=PACKAGED, default="photographs", help="for your own pictures")
    options = parser.parse_args()
    jobs = {model: [packaged(*place) for place in places] for model, places in PACKAGED.items()}
    if options.pictures:
        jobs = {options.model: options.pictures}
    tiles = [tile for model, files in jobs.items() for tile in predict(model, files)]
    pictures, titles = zip(*tiles, strict=True)
    write_image(OUT / "index.png", contact_sheet(pictures, titles, columns=min(4, len(tiles))))
    print(f"look at {OUT / 'index.png'}; results are in {OUT}")


if __name__ == "__main__":
    main()
