"""Options that choose a model, or several combined."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from refine.checkpoint.find import SHIPPED, shipped_models
from refine.cli.options import require_paths, tell
from refine.errors import RefineError
from refine.files import read_json
from refine.networks.choice import ModelChoice

if TYPE_CHECKING:
    from refine.networks.network import Network


def add_model(parser: Any, instances: bool = True, occlusion: bool = True) -> None:
    """Add the options for the model to a parser or argument group.

    Args:
        parser: parser or argument group.
        instances: whether to add `--instances`, which `refine evaluate` has for something else.
        occlusion: whether to add `--occlusion`.
    """
    parser.add_argument(
        "--checkpoint", metavar="NAME", help="model: a name of `refine models`, hf:OWNER/NAME, a folder or a file"
    )
    if instances:
        parser.add_argument(
            "--instances",
            dest="instance_models",
            nargs="+",
            metavar="NAME",
            help="models for the instances, instead of --checkpoint",
        )
    parser.add_argument(
        "--semantic", nargs="+", metavar="NAME", help="models for the semantic map (default: those for instances)"
    )
    parser.add_argument(
        "--categories", metavar="FILE", help="JSON with id, name and isthing of every category of the result"
    )
    parser.add_argument(
        "--class-map",
        metavar="FILE|JSON",
        help="JSON object with the category name of classes of a model (null drops one), in a file or as text",
    )
    if occlusion:
        parser.add_argument(
            "--occlusion",
            metavar="HEAD",
            help="occlusion head of refine train-occlusion, instead of the model's own; makes soe the default rule",
        )


def check_model(options: argparse.Namespace) -> None:
    """Find the models on the command line, before torch is imported, and set `options.model` to a `ModelChoice`.

    Raises:
        RefineError: no model is given (no single default suits both micrographs and photographs), or too many, or
            one does not exist.
    """
    several = getattr(options, "instance_models", None)
    if options.checkpoint and several:
        raise RefineError("--checkpoint, --instances: give one of them")
    names = several or ([options.checkpoint] if options.checkpoint else [])
    if not names:
        data = {name: read_json(SHIPPED / name / "config.json").get("data") for name in shipped_models()}
        models = ", ".join(f"{name} (trained on {what})" for name, what in data.items())
        raise RefineError(
            f"--checkpoint: choose a model: {models}, hf:OWNER/NAME, or a folder that `refine train` wrote"
        )
    require_paths(class_files(options))
    options.model = ModelChoice(
        tuple(names),
        tuple(options.semantic or ()),
        options.categories,
        options.class_map,
        getattr(options, "occlusion", None),
    )
    options.model.find()


def class_files(options: argparse.Namespace) -> list[str]:
    """Return the files of `--categories` and `--class-map`; the latter may be JSON text instead."""
    given = (options.categories, options.class_map)
    return [path for path in given if path and not path.startswith("{")]


def check_optional_model(options: argparse.Namespace) -> None:
    """Do the same as `check_model`, but without any of its options set `options.model` to None."""
    names = ("checkpoint", "instance_models", "semantic", "categories", "class_map", "occlusion")
    if any(getattr(options, name) for name in names):
        check_model(options)
    else:
        options.model = None


def note_remarks(network: Network) -> None:
    """Print what a combination of networks drops or renumbers."""
    for remark in getattr(network, "remarks", ()):
        tell("note", remark)
