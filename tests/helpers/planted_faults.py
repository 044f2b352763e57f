"""Faults to plant in the drawn data set, and the messages expected for each."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from helpers.drawn_data import IDS, Files
from PIL import Image


def _segment(files: Files, n: int = 0) -> dict[str, Any]:
    return files.content["annotations"][0]["segments_info"][n]


def _shift_ids(files: Files) -> None:
    files.paint(0, np.where(IDS == 300, 301, IDS))


def cut(path: Path) -> None:
    """Truncate a file."""
    path.write_bytes(path.read_bytes()[:45])


Faults = dict[str, tuple[Callable[[Files], Any], list[str]]]

IN_JSON: Faults = {
    "isthing": (
        lambda f: f.content["categories"][1].pop("isthing"),
        ["category: categories[1] (id 3): isthing is missing; expected 1 (countable) or 0 (stuff)"],
    ),
    "category id": (
        lambda f: f.content["categories"][1].update(id="3"),
        [
            "category: categories[1]: id is '3'; expected an integer",
            "segment: annotation of image 10: segment 70000: unknown category_id 3; correct it or add the category",
        ],
    ),
    "category twice": (
        lambda f: f.content["categories"].append({"id": 3, "name": "cat", "isthing": 7, "color": [1, 2]}),
        [
            "category: categories[4] (id 3): id 3 is used twice; make ids unique",
            "category: categories[4] (id 3): 'cat' is also the name of id 17; rename one",
            "category: categories[4] (id 3): isthing is 7; expected 1 (countable) or 0 (stuff)",
            "category: categories[4] (id 3): color is [1, 2]; expected [R, G, B] of 0-255, or none",
        ],
    ),
    "category name": (
        lambda f: f.content["categories"][0].pop("name"),
        ["category: categories[0] (id 17): name is None; expected a string"],
    ),
    "image id": (
        lambda f: f.content["images"][0].pop("id"),
        [
            "image: images[0]: id is None; expected an integer or a string",
            "annotation: annotations[0]: image_id 10 is not in `images`; add it or drop this",
        ],
    ),
    "image twice": (
        lambda f: f.content["images"].append(dict(f.content["images"][0])),
        ["image: images[1] (id 10): id 10 is used twice; make ids unique"],
    ),
    "image size": (
        lambda f: f.content["images"][0].update(height=0),
        ["image: images[0] (id 10): height and width are 0 and 6; expected pixels, at most 134,217,728 in all"],
    ),
    "image name": (
        lambda f: f.content["images"][0].update(file_name=None),
        ["image: images[0] (id 10): file_name is None; expected the name of a file"],
    ),
    "annotation twice": (
        lambda f: f.content["annotations"].append(f.content["annotations"][0]),
        ["annotation: annotation of image 10: annotations[1] is a duplicate; keep one"],
    ),
    "annotation without entries": (
        lambda f: f.content["annotations"][0].pop("segments_info"),
        ["annotation: annotation of image 10: segments_info is None; expected a list"],
    ),
    "annotation without name": (
        lambda f: f.content["annotations"][0].pop("file_name"),
        ["annotation: annotation of image 10: file_name is None; expected the name of a file"],
    ),
    "no annotation": (
        lambda f: f.content["annotations"].clear(),
        ["annotation: annotations: the list is empty; annotate at least one image"],
    ),
    "id used by two segments": (
        lambda f: _segment(f, 1).update(id=9),
        [
            "segment: annotation of image 10: segment 9: segments_info[0] and [1] both use this id; "
            "give one of them another id",
            "segment: id 300 (4 pixels) is not in segments_info of image 10; add it, or paint it 0",
        ],
    ),
    "id out of range": (
        lambda f: _segment(f, 1).update(id=1 << 24),
        [
            "segment: annotation of image 10: segments_info[1]: id is 16777216; expected an integer from 1 to "
            "16777215",
            "segment: id 300 (4 pixels) is not in segments_info of image 10; add it, or paint it 0",
        ],
    ),
    "unknown category": (
        lambda f: _segment(f).update(category_id=99),
        ["segment: annotation of image 10: segment 9: unknown category_id 99; correct it or add the category"],
    ),
    "iscrowd": (
        lambda f: _segment(f).update(iscrowd=2),
        ["segment: annotation of image 10: segment 9: iscrowd is 2; expected 0 or 1"],
    ),
    "id 0": (
        lambda f: _segment(f, 1).update(id=0),
        [
            "segment: annotation of image 10: segments_info[1]: id is 0; expected an integer from 1 to 16777215",
            "segment: id 300 (4 pixels) is not in segments_info of image 10; add it, or paint it 0",
        ],
    ),
    "id is true": (
        lambda f: _segment(f, 1).update(id=True),
        [
            "segment: annotation of image 10: segments_info[1]: id is True; expected an integer from 1 to 16777215",
            "segment: id 300 (4 pixels) is not in segments_info of image 10; add it, or paint it 0",
        ],
    ),
    "segment is a number": (
        lambda f: f.content["annotations"][0]["segments_info"].append(4),
        [
            "segment: annotation of image 10: segments_info[4]: id is None; expected an integer from 1 to 16777215",
        ],
    ),
    "category is a list": (
        lambda f: _segment(f).update(category_id=[3]),
        ["segment: annotation of image 10: segment 9: unknown category_id [3]; correct it or add the category"],
    ),
    "crowd is a string": (
        lambda f: _segment(f).update(iscrowd="0"),
        ["segment: annotation of image 10: segment 9: iscrowd is '0'; expected 0 or 1"],
    ),
    "area is no number": (
        lambda f: _segment(f).update(area="4"),
        [
            "segment: annotation of image 10: segment 9: area is '4'; expected a whole number of pixels",
        ],
    ),
    "area is not whole": (
        lambda f: _segment(f).update(area=4.5),
        ["segment: annotation of image 10: segment 9: area is 4.5; expected a whole number of pixels"],
    ),
    "area of 400 digits": (
        lambda f: _segment(f).update(area=10**400),
        [
            "segment: annotation of image 10: segment 9: area is 1000000000000000000000000000...0000000000000000"
            "0000000000000; expected a whole number of pixels",
        ],
    ),
    "image is a number": (
        lambda f: f.content["images"].append(3),
        ["image: images[1]: id is None; expected an integer or a string"],
    ),
    "image id is true": (
        lambda f: f.content["annotations"][0].update(image_id=True),
        ["annotation: annotations[0]: image_id is True; expected an integer or a string"],
    ),
    "image of 10^30 pixels": (
        lambda f: f.content["images"][0].update(height=10**15, width=10**15),
        [
            "image: images[0] (id 10): height and width are 1000000000000000 and 1000000000000000; expected "
            "pixels, at most 134,217,728 in all",
        ],
    ),
    "image height": (
        lambda f: f.content["images"][0].update(height="4"),
        ["image: images[0] (id 10): height and width are '4' and 6; expected pixels, at most 134,217,728 in all"],
    ),
    "way out of the folder": (
        lambda f: f.content["annotations"][0].update(file_name="../../0.png"),
        [
            "annotation: annotation of image 10: file_name '../../0.png' leads out of the data set's folder; "
            "expected a path below it"
        ],
    ),
    "absolute path": (
        lambda f: f.content["images"][0].update(file_name="/dev/zero"),
        [
            "image: images[0] (id 10): file_name '/dev/zero' leads out of the data set's folder; expected a path "
            "below it"
        ],
    ),
    "name with NUL": (
        lambda f: f.content["annotations"][0].update(file_name="a\0.png"),
        [
            "annotation: annotation of image 10: file_name 'a\\x00.png' is not a possible file name; rename it",
        ],
    ),
    "name with half a character": (
        lambda f: f.content["annotations"][0].update(file_name="\ud800.png"),
        [
            "annotation: annotation of image 10: file_name '\\ud800.png' is not UTF-8; rename it",
        ],
    ),
}
"""Faults of the JSON by name: function that plants the fault, and the expected errors, each as "kind: message"."""

FAULTS: Faults = IN_JSON | {
    "ids of PNG and JSON differ": (
        _shift_ids,
        [
            "segment: id 301 (4 pixels) is not in segments_info of image 10; add it, or paint it 0",
            "segment: image 10: segment 300 of segments_info has no pixel; drop it",
        ],
    ),
    "area": (
        lambda f: _segment(f).update(area=5),
        ["segment: image 10: segment 9: area is 5 in the JSON, 4 in the PNG; correct it"],
    ),
    "bbox": (
        lambda f: _segment(f, 1).update(bbox=[1, 3, 2, 2]),
        ["segment: image 10: segment 300: bbox is [1, 3, 2, 2] in the JSON, [1, 1, 2, 2] in the PNG; correct it"],
    ),
    "bbox of no area": (
        lambda f: _segment(f, 1).update(bbox=[1, 1, 0, 0]),
        ["segment: image 10: segment 300: bbox is [1, 1, 0, 0] in the JSON, [1, 1, 2, 2] in the PNG; correct it"],
    ),
    "bbox of texts": (
        lambda f: _segment(f, 1).update(bbox="1122"),
        ["segment: image 10: segment 300: bbox is '1122' in the JSON, [1, 1, 2, 2] in the PNG; correct it"],
    ),
    "size": (
        lambda f: f.content["images"][0].update(height=6, width=4),
        [
            "PNG: expected 4 × 6 pixels as in the JSON for image 10, got 6 × 4 pixels; correct `height` and "
            "`width`, or the PNG"
        ],
    ),
    "image of another size": (
        lambda f: Image.new("RGB", (6, 5)).save(f.images / "0.png"),
        ["image file: expected 6 × 4 pixels as in its segments, got 6 × 5 pixels; make them equal"],
    ),
    "image missing": (
        lambda f: (f.images / "0.png").unlink(),
        ["image file: no such file; check the path"],
    ),
    "image empty": (
        lambda f: (f.images / "0.png").write_bytes(b""),
        ["image file: the file is empty; copy it again"],
    ),
    "image is a text": (
        lambda f: (f.images / "0.png").write_text("hello"),
        ["image file: is not a supported image; convert it to PNG, JPEG or TIFF"],
    ),
    "PNG missing": (
        lambda f: (f.segments / "0_ids.png").unlink(),
        ["PNG: cannot be read (No such file or directory); check the path"],
    ),
    "PNG truncated": (
        lambda f: cut(f.segments / "0_ids.png"),
        ["PNG: is damaged (truncated after 45 bytes); write it again"],
    ),
    "PNG grey": (
        lambda f: Image.new("L", (6, 4)).save(f.segments / "0_ids.png"),
        ["PNG: expected an 8-bit RGB PNG, got 8-bit grey; write id = R + 256 G + 65536 B"],
    ),
}
"""Faults of the JSON, of images and of id-PNGs."""
