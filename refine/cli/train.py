"""refine train"""

from __future__ import annotations

from collections.abc import Sequence


def run(arguments: Sequence[str], prog: str, description: str) -> None:
    from jsonargparse import ArgumentParser

    from refine.training.config import add_run_arguments, parse_run

    words = [word for word in arguments if word != "--resume"]
    if {"--help", "-h", "--print_config"} & {word.split("=")[0] for word in words}:
        parser = ArgumentParser(
            prog, description=f"{description}. `--resume` goes on from the last checkpoint in --out."
        )
        add_run_arguments(parser)
        parser.parse_args(words)
        return
    config = parse_run(words)

    from refine.runtime import is_first
    from refine.training.train import train

    folder = train(config, resume="--resume" in arguments)
    if is_first():
        print(f"written to {folder}")
