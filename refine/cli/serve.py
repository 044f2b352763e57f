"""refine serve"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib.util import find_spec

from refine.cli.options import add_threads


def run(arguments: Sequence[str], prog: str, description: str) -> None:
    parser = argparse.ArgumentParser(prog, description=description)
    parser.add_argument("--checkpoint", default="nuclei", help="shown first: a shipped model or a folder (nuclei)")
    parser.add_argument("--device", help="cpu, cuda, … (default: the GPU if there is one)")
    add_threads(parser)
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets others in (default: this computer only)")
    parser.add_argument("--port", type=int, default=7860, help="(default: 7860)")
    options = parser.parse_args(arguments)

    from refine.errors import missing_extra

    if find_spec("gradio") is None:
        raise missing_extra("the page needs Gradio", "serve")

    from refine.runtime import set_threads
    from refine.serve.page import serve
    from refine.serve.results import Models

    set_threads(options.threads)
    serve(Models(options.checkpoint, options.device), options.host, options.port)
