"""refine models"""

from __future__ import annotations

import argparse
from collections.abc import Sequence


def run(arguments: Sequence[str], prog: str, description: str) -> None:
    argparse.ArgumentParser(prog, description=description).parse_args(arguments)

    from rich.console import Console
    from rich.table import Table

    from refine.checkpoint.find import find_model, shipped_models
    from refine.files import read_json

    table = Table("model", "data", "classes", "measured")
    for name in shipped_models():
        description_ = read_json(find_model(name) / "config.json")
        metrics = " ".join(f"{k} {100 * v:.1f}" for k, v in description_["metrics"].items())
        table.add_row(name, description_["data"], str(len(description_["categories"])), metrics)
    Console().print(table)
