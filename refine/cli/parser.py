"""Parser of the command line whose errors are one line each."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, NoReturn

from refine.cli.options import tell
from refine.errors import did_you_mean


class Parser(argparse.ArgumentParser):
    """`ArgumentParser` that prints an error in one line, without the usage, and names similar words.

    A word such as -1000,400 is a value, not an option, as in Python 3.14.
    """

    def __init__(self, *args: Any, **keywords: Any) -> None:
        super().__init__(*args, **keywords)
        self._negative_number_matcher = re.compile(r"-\.?\d")
        self._words: list[str] = []

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        self._words = list(sys.argv[1:] if args is None else args)
        return super().parse_known_args(self._words, namespace)

    def error(self, message: str) -> NoReturn:
        """Print the message with what helps, and exit with 2."""
        _, unknown, words = message.partition("unrecognized arguments: ")
        if unknown and words.startswith("-"):
            message += did_you_mean(words.split()[0].split("=")[0], self._option_string_actions)
        _, required, names = message.partition("the following arguments are required: ")
        missing = [name for name in names.split(", ") if name in self._argument_names()]
        if required and missing and (taken := list(self._open_ended())):
            message += (
                f"; {', '.join(taken)} takes the words that follow it: write {' '.join(missing)} before it, or "
                f"after a separate --"
            )
        tell("error", f"{message}; see {self.prog} --help")
        self.exit(2)

    def _argument_names(self) -> list[str]:
        """Return the names that messages use for arguments that are not options."""
        actions = (action for action in self._actions if not action.option_strings)
        return [action.metavar if isinstance(action.metavar, str) else action.dest for action in actions]

    def _open_ended(self) -> Iterator[str]:
        """Yield the options of the command line that take any number of words, and got some."""
        for word, following in pairwise(self._words):
            action = self._option_string_actions.get(word)
            if action is not None and action.nargs in ("?", "*", "+") and not following.startswith("-"):
                yield word

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            known = [str(choice) for choice in action.choices]
            hint = did_you_mean(str(value), known)
            raise argparse.ArgumentError(
                action, f"unknown value {value!r:.60}{hint}; expected one of {', '.join(known)}"
            )
