"""refine merge"""

from __future__ import annotations

from collections.abc import Sequence

from refine.cli.options import require_paths
from refine.cli.parser import Parser
from refine.errors import RefineError, counted
from refine.formats.shards import merge_shards
from refine.savers import SAVERS
from refine.storage import location


def run(arguments: Sequence[str], prog: str, description: str) -> None:
    parser = Parser(prog, description=description)
    parser.add_argument("out", help="folder given to refine predict --shard I/N as --out, after all N runs")
    options = parser.parse_args(arguments)
    require_paths([options.out])
    done, failed = merge_shards(location(options.out), list(SAVERS.values()))
    if failed:
        raise RefineError(
            f"{failed} of {counted(done + failed, 'image')} failed; the results for the others are in "
            f"{options.out}, the reasons in its failed.json"
        )
    print(f"results of {counted(done, 'image')} in {options.out}/panoptic.json")
