"""refine serve"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib.util import find_spec

from refine.checkpoint.find import find_model
from refine.cli.options import add_threads


def run(arguments: Sequence[str], prog: str, description: str) -> None:
    parser = argparse.ArgumentParser(prog, description=description)
    parser.add_argument("--checkpoint", help="model selected at start: a name or model folder (default: none)")
    parser.add_argument("--device", help="cpu, cuda, … (default: the GPU if there is one)")
    add_threads(parser)
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 allows other computers (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, default=7860, help="(default: 7860)")
    parser.add_argument("--auth", metavar="USER:PASSWORD", help="user name and password that the page requires")
    options = parser.parse_args(arguments)

    from refine.errors import RefineError, missing_extra

    user, _, password = (options.auth or "").partition(":")
    if options.auth is not None and not (user and password):
        raise RefineError("--auth: expected USER:PASSWORD")
    if options.checkpoint:
        find_model(options.checkpoint)
    if find_spec("gradio") is None:
        raise missing_extra("the page needs Gradio", "serve")

    from refine.runtime import set_threads
    from refine.serve.models import Models
    from refine.serve.page import serve

    set_threads(options.threads)
    auth = (user, password) if options.auth else None
    serve(Models(options.checkpoint, options.device), options.host, options.port, auth)
