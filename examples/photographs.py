"""Write the data of configs/photographs.yaml: COCO photographs under fourteen coarse labels, or all 133.

    python examples/photographs.py --coco FOLDER [--out data/photographs]

FOLDER holds `coco_panoptic` (images/SPLIT, panoptic_SPLIT, panoptic_SPLIT.json with COCO's 133 classes) and,
for more pictures of things, `coco_things_512` in the same form with one class for all that is no thing. Of
the latter, pictures that the former has are left out, and what is no thing is void: it trains no stuff.
Written are train.json, val.json, remap.json and, for COCO's own classes, remap_133.json; pictures and PNGs
stay where they are.
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--coco", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("data/photographs"))
    options = parser.parse_args()
    categories: dict[int, dict] = {}
    for split in ("train", "val"):
        images, annotations = read(options.coco, "coco_panoptic", split, categories)
        if split == "train" and (options.coco / "coco_things_512").is_dir():
            known = {image["id"] for image in images}
            more_images, more_annotations = read(options.coco, "coco_things_512", split, categories)
            images += [image for image in more_images if image["id"] not in known]
            annotations += [a for a in more_annotations if a["image_id"] not in known]
        content = {"images": images, "annotations": annotations, "categories": list(categories.values())}
        write_json(options.out / f"{split}.json", content)
        print(f"{options.out}/{split}.json: {len(images)} photographs")
    target = {str(n): COARSE.get((c["supercategory"], c["isthing"])) for n, c in categories.items()}
    write_json(options.out / "remap.json", {"categories": CATEGORIES, "map": target}, indent=1)
    known = [categories[int(n)] for n, coarse in target.items() if coarse is not None]
    same = {n: None if coarse is None else int(n) for n, coarse in target.items()}
    write_json(options.out / "remap_133.json", {"categories": known, "map": same}, indent=1)


def read(root: Path, name: str, split: str, categories: dict[int, dict]) -> tuple[list[dict], list[dict]]:
    """Images and annotations with paths below `root`; adds the categories that are new."""
    content = read_json(root / name / f"panoptic_{split}.json")
    for category in content["categories"]:
        categories.setdefault(category["id"], category)
    for image in content["images"]:
        image["file_name"] = f"{name}/images/{split}/{image['file_name']}"
    for annotation in content["annotations"]:
        annotation["file_name"] = f"{name}/panoptic_{split}/{annotation['file_name']}"
    return content["images"], content["annotations"]


if __name__ == "__main__":
    main()
