"""refine synthesize"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from refine.cli.options import check_out_folder, count_from
from refine.cli.parser import Parser


def run(arguments: Sequence[str], prog: str, description: str) -> None:
    parser = Parser(prog, description=description)
    parser.add_argument("out", help="folder for images/, segments/, panoptic.json and instances.json")
    parser.add_argument("--images", type=count_from(1), required=True, help="number of scenes")
    parser.add_argument(
        "--size",
        type=count_from(64),
        nargs=2,
        default=(256, 256),
        metavar=("H", "W"),
        help="in pixels (default: 256 256)",
    )
    parser.add_argument("--seed", type=count_from(0), default=0, help="(default: 0)")
    options = parser.parse_args(arguments)

    check_out_folder(options.out)

    from refine.data.synthetic.scenes import generate

    generate(Path(options.out), options.images, size=tuple(options.size), seed=options.seed)
    print(f"written to {options.out}")
