"""refine models"""

from __future__ import annotations

from collections.abc import Sequence

from refine.cli.options import print_tables
from refine.cli.parser import Parser
from refine.errors import counted


def run(arguments: Sequence[str], prog: str, description: str) -> None:
    parser = Parser(prog, description=description)
    parser.add_argument(
        "--fetch", metavar="NAME", help="fetch and convert public weights, and print the model folder"
    )
    options = parser.parse_args(arguments)

    from refine.checkpoint.find import find_model

    if options.fetch is not None:
        print(find_model(options.fetch))
        return

    from rich.table import Table

    table = Table("name", "categories", "quality (%)", "MB", "licence", "location")
    table.columns[0].no_wrap, table.columns[3].justify = True, "right"
    for row in _rows():
        table.add_row(*row)
    print_tables(table, width=160)


def _rows() -> list[tuple[str, ...]]:
    """Return the table cells of every named model, without loading a network."""
    from refine.checkpoint.find import find_model, is_cached, licence_of, shipped_models
    from refine.checkpoint.public import PUBLIC
    from refine.files import read_json

    rows: list[tuple[str, ...]] = []
    for name in shipped_models():
        folder = find_model(name)
        content = read_json(folder / "config.json")
        things = sum(bool(category["isthing"]) for category in content["categories"])
        knows = f"{content['data']}: {counted(things, 'thing')}, {len(content['categories']) - things} stuff"
        quality = f"PQ {100 * content['metrics']['PQ']:.1f}" if "PQ" in content["metrics"] else ""
        size = sum(path.stat().st_size for path in folder.iterdir())
        rows.append((name, knows, quality, f"{size / 1e6:.0f}", licence_of(name), "shipped"))
    for name, model in PUBLIC.items():
        where = "fetched" if is_cached(name) else "fetched at first use"
        quality = f"{model.published} (published)"
        rows.append((name, model.knows, quality, str(model.megabytes), licence_of(name), where))
    return rows
