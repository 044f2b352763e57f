"""The main job on the shipped default: panoptic results of a real micrograph that comes with mahotas.

    python examples/demo.py [PICTURE …]

writes out/demo: panoptic.json and panoptic/*.png (COCO's format), overlays/*.jpg, and index.png, a sheet of
all of them.
"""

import sys
from importlib.util import find_spec
from pathlib import Path

import refine
from refine.data.images import read_image
from refine.engine.draw import contact_sheet, overlay, write_picture
from refine.evaluation.coco_format import PredictionWriter

OUT = Path("out/demo")


def packaged_pictures() -> list[Path]:
    """Stained nuclei under a fluorescence microscope, which lie inside mahotas' wheel."""
    spec = find_spec("mahotas")
    assert spec is not None
    assert spec.origin is not None
    return [Path(spec.origin).parent / "demos" / "data" / "nuclear.png"]


def main() -> None:
    files = [Path(name) for name in sys.argv[1:]] or packaged_pictures()
    predictor = refine.Predictor("nuclei")
    tiles, titles = [], []
    with PredictionWriter(OUT, predictor.categories) as writer:
        for number, path in enumerate(files, 1):
            image = read_image(path)
            result = predictor(image)
            writer.add(number, path.name, result)
            picture = overlay(image, result)
            write_picture(OUT / "overlays" / f"{path.stem}.jpg", picture)
            things = sum(segment.isthing for segment in result.segments)
            print(f"{path.name}: {things} things, {len(result) - things} regions of stuff")
            tiles += [image, picture]
            titles += [path.name, f"{things} things"]
    write_picture(OUT / "index.png", contact_sheet(tiles, titles, columns=4 if len(files) > 1 else 2))
    print(f"look at {OUT / 'index.png'}; results are in {OUT}")


if __name__ == "__main__":
    main()
