"""refine merge"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from refine.errors import RefineError
from refine.formats.shards import merge_shards
from refine.savers import SAVERS
from refine.storage import location


def run(arguments: Sequence[str], prog: str, description: str) -> None:
    parser = argparse.ArgumentParser(prog, description=description)
    parser.add_argument("out", help="folder given to refine predict --shard I/N as --out, after all N runs")
    options = parser.parse_args(arguments)
    done, failed = merge_shards(location(options.out), list(SAVERS.values()))
    if failed:
        raise RefineError(
            f"{failed} of {done + failed} images failed; the results for the others are in {options.out}, the "
            "reasons in its failed.json"
        )
    print(f"results of {done} images in {options.out}/panoptic.json")
