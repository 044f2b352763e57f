"""Write the data of configs/photographs.yaml: photographs with fourteen coarse labels, or with COCO's 133 classes.

    python examples/photographs.py --coco FOLDER [--out data/photographs]

FOLDER holds `coco_panoptic` (images/SPLIT, panoptic_SPLIT, panoptic_SPLIT.json with COCO's 133 classes) and the
other sets in the same form. Sets of COCO's things have a single class for all other pixels, from which the semantic
head learns only that they are no things. COCO photographs of an earlier set are not repeated in a later one.
Written are train.json, tune.json, val.json, voc.json (VOC's validation split, things alone), remap.json and, for
COCO's own classes, remap_133.json; images and PNGs are not copied: `sets` is a link to FOLDER.
"""

import argparse
from pathlib import Path

from refine.files import read_json, write_json

THINGS = {
    "person": ["person"],
    "animal": ["animal"],
    "vehicle": ["vehicle"],
    "furniture": ["furniture"],
    "food": ["food"],
    "kitchenware": ["kitchen"],
    "appliance": ["electronic", "appliance"],
    "object": ["accessory", "sports", "indoor", "outdoor"],
}
STUFF = {
    "sky": ["sky"],
    "plants": ["plant"],
    "ground": ["ground", "floor"],
    "water": ["water"],
    "building": ["building", "wall", "window", "ceiling", "structural", "solid"],
    "furnishing": ["furniture-stuff", "textile", "raw-material", "food-stuff"],
}
CATEGORIES = [
    {"id": n, "name": name, "isthing": int(name in THINGS)} for n, name in enumerate([*THINGS, *STUFF], 1)
]
COARSE = {
    (supercategory, isthing): next(c["id"] for c in CATEGORIES if c["name"] == name)
    for isthing, groups in ((1, THINGS), (0, STUFF))
    for name, supercategories in groups.items()
    for supercategory in supercategories
}


SETS = {
    "coco_panoptic": 16,
    "coco_things_512": 2,
    "coco_more_512": 2,
    "voc_things_400": 1,
    "ccp_persons_448": 1,
    "camvid_480": 2,
}
TUNING = 5
"""Every fifth training photograph of `coco_panoptic` is held out for the choice of thresholds."""
BACKGROUND = 201
"""Category id in the sets of COCO's things for all pixels without a thing."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--coco", type=Path, required=True, help="folder of the sets")
    parser.add_argument("--out", type=Path, default=Path("data/photographs"), help="(default: data/photographs)")
    parser.add_argument(
        "--sets",
        nargs="+",
        metavar="NAME=TIMES",
        default=[f"{name}={times}" for name, times in SETS.items()],
        help="sets, and how often each is repeated",
    )
    options = parser.parse_args()
    known: set[int] = set()
    parts: dict[str, list[tuple[dict, dict]]] = {"train": [], "tune": [], "val": []}
    categories: dict[int, dict] = {}
    for entry in options.sets:
        name, _, times = entry.partition("=")
        pairs = read(options.coco, name, "train", categories)
        if name == "coco_panoptic":
            parts["val"] = read(options.coco, name, "val", categories)
            parts["tune"] = pairs[::TUNING]
            known = {image["id"] for image, _ in pairs}
            pairs = [pair for n, pair in enumerate(pairs) if n % TUNING]
        elif name == "voc_things_400":
            parts["voc"] = read(options.coco, name, "val", categories)
        elif name.startswith("coco_"):
            pairs = [pair for pair in pairs if pair[0]["id"] not in known]
            known |= {image["id"] for image, _ in pairs}
        parts["train"] += [numbered(pair, name, n) for n in range(int(times or 1)) for pair in pairs]
    for split, pairs in parts.items():
        images, annotations = [image for image, _ in pairs], [annotation for _, annotation in pairs]
        content = {"images": images, "annotations": annotations, "categories": list(categories.values())}
        write_json(options.out / f"{split}.json", content)
        print(f"{options.out}/{split}.json: {len(images)} photographs, repetitions included")
    target: dict[str, int | str | None] = {
        str(n): COARSE.get((c["supercategory"], c["isthing"])) for n, c in categories.items()
    }
    target[str(BACKGROUND)] = "stuff"
    write_json(options.out / "remap.json", {"categories": CATEGORIES, "map": target}, indent=1)
    own = [categories[int(n)] for n, coarse in target.items() if isinstance(coarse, int)]
    same = {n: int(n) if isinstance(coarse, int) else coarse for n, coarse in target.items()}
    write_json(options.out / "remap_133.json", {"categories": own, "map": same}, indent=1)
    link = options.out / "sets"
    link.unlink(missing_ok=True)
    link.symlink_to(options.coco.resolve(), target_is_directory=True)


def read(root: Path, name: str, split: str, categories: dict[int, dict]) -> list[tuple[dict, dict]]:
    """Return images with their annotations, with paths relative to `root`; add new categories to `categories`."""
    content = read_json(root / name / f"panoptic_{split}.json")
    for category in content["categories"]:
        categories.setdefault(category["id"], category)
    annotations = {annotation["image_id"]: annotation for annotation in content["annotations"]}
    pairs = []
    for image in content["images"]:
        annotation = annotations[image["id"]]
        image["file_name"] = f"{name}/images/{split}/{image['file_name']}"
        annotation["file_name"] = f"{name}/panoptic_{split}/{annotation['file_name']}"
        pairs.append((image, annotation))
    return pairs


def numbered(pair: tuple[dict, dict], name: str, repetition: int) -> tuple[dict, dict]:
    """Return the same photograph with a unique id, where sets or repetitions would share one."""
    image, annotation = pair
    image_id = image["id"] if name.startswith("coco_") and not repetition else f"{name}/{image['id']}/{repetition}"
    return image | {"id": image_id}, annotation | {"image_id": image_id}


if __name__ == "__main__":
    main()
