"""refine serve"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

from refine.cli.networks import add_model, check_optional_model, note_remarks
from refine.cli.options import add_device, add_threads, count_from
from refine.cli.parser import Parser


def run(arguments: Sequence[str], prog: str, description: str) -> None:
    parser = Parser(prog, description=description)
    add_model(parser.add_argument_group("model selected at start (default: none)"))
    add_device(parser)
    add_threads(parser)
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 allows other computers (default: 127.0.0.1)")
    parser.add_argument("--port", type=count_from(0, 65535), default=7860, help="(default: 7860)")
    parser.add_argument("--auth", metavar="USER:PASSWORD", help="user name and password that the page requires")
    options = parser.parse_args(arguments)

    from refine.errors import RefineError, missing_extra

    user, _, password = (options.auth or "").partition(":")
    if options.auth is not None and not (user and password):
        raise RefineError("--auth: expected USER:PASSWORD")
    check_optional_model(options)
    if find_spec("gradio") is None:
        raise missing_extra("the page needs Gradio", "serve")

    from refine.runtime import prepare_cpu
    from refine.serve.models import Models
    from refine.serve.page import serve

    prepare_cpu(options.threads)
    auth = (user, password) if options.auth else None
    models = Models(options.model, options.device, options.precision)
    if models.first:
        note_remarks(models.predictor(models.first).network)
    serve(models, options.host, options.port, auth)
