"""refine check-data"""

from __future__ import annotations

import argparse
from collections.abc import Sequence


def run(arguments: Sequence[str], prog: str, description: str) -> None:
    parser = argparse.ArgumentParser(prog, description=description)
    parser.add_argument("--images", required=True, help="folder of pictures")
    parser.add_argument("--json", required=True, help="panoptic JSON")
    parser.add_argument("--segments", required=True, help="folder of its PNGs")
    parser.add_argument("--remap", help="file of category changes")
    parser.add_argument("--out", help="JSON of everything that was found")
    options = parser.parse_args(arguments)

    from refine.data.check import check_dataset
    from refine.errors import RefineError
    from refine.files import write_json

    report = check_dataset(options.images, options.json, options.segments, remap=options.remap)
    print(report.text())
    if options.out:
        write_json(options.out, report.to_json(), indent=1)
    if not report.ok:
        raise RefineError(f"{options.json}: {len(report.errors)} errors; mend them as told above")
