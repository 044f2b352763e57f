"""The code blocks of README.md and docs/*.md run as they stand there, and their commands have the options shown.

`python` and `sh` blocks run, in the order of the page, in one temporary folder and one namespace per page. A
comment before a block changes that:

    <!-- not run: REASON -->        the block is only checked for its commands and syntax
    <!-- tested with OPTIONS -->    the options are appended to the block's last command, to keep the test short
"""

import doctest
import io
import os
import re
import shlex
import sys
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import refine
from refine.cli.main import COMMANDS, main

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "docs/site"))

from reference import config_paths  # noqa: E402

PAGES = {
    str(path.relative_to(ROOT)): path
    for path in [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        ROOT / "configs/README.md",
        *sorted(ROOT.glob("docs/*.md")),
    ]
}
BLOCK = re.compile(
    r"(?:<!-- (?P<note>[^\n]*) -->\n+)?^```(?P<language>\w*)[^\n]*\n(?P<code>.*?)^```$", re.DOTALL | re.MULTILINE
)


@dataclass(frozen=True)
class Block:
    """Code block of a page, with the comment before it."""

    language: str
    code: str
    note: str

    @property
    def runs(self) -> bool:
        return self.language in ("python", "sh") and not self.note.startswith("not run: ")

    @property
    def commands(self) -> list[str]:
        """Lines of the block, with continued lines joined; comments and blank lines are left out."""
        lines = self.code.replace("\\\n", " ").splitlines()
        return [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]


def blocks(page: str) -> list[Block]:
    found = BLOCK.finditer(PAGES[page].read_text(encoding="utf-8"))
    return [Block(match["language"], match["code"], match["note"] or "") for match in found]


def run_shell(block: Block) -> None:
    """Run the commands of a `sh` block, all of which must be commands of refine."""
    extra = shlex.split(block.note.removeprefix("tested with ")) if block.note.startswith("tested with ") else []
    for command in block.commands:
        name, *words = shlex.split(command, comments=True)
        assert name == "refine", f"{command}: only refine's own commands run; mark the block with `not run: REASON`"
        arguments = words + (extra if command == block.commands[-1] else [])
        assert main(arguments) == 0, f"{command} failed"


def run_page(page: str) -> dict:
    names: dict = {}
    for block in blocks(page):
        if block.runs and block.language == "python":
            exec(compile(block.code, page, "exec"), names)
        elif block.runs:
            run_shell(block)
    return names


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Empty folder to run a page in, with a micrograph."""
    mahotas = pytest.importorskip("mahotas")
    whole = Image.open(Path(mahotas.__file__).parent / "demos" / "data" / "nuclear.png")
    whole.crop((0, 0, 640, 480)).save(tmp_path / "cells.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)  # later tests keep theirs
    return tmp_path


def test_readme(folder, capsys):
    names = run_page("README.md")
    assert "nucleus" in capsys.readouterr().out
    assert names["mask"].any()
    assert Image.open("overlay.jpg").size == (640, 480)
    assert Path("out/panoptic.json").is_file()
    # The better of two overlapping objects keeps its pixels; stuff takes the rest.
    areas = {segment.score: segment.area for segment in names["fused"].segments}
    assert areas == {0.9: 200 * 200, 0.8: 200 * 300 - 100 * 100, None: 480 * 640 - 200 * 200 - 50_000}


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page != "README.md" and any(b.runs for b in blocks(page))]
)
def test_blocks_run(page, folder):
    run_page(page)


@pytest.mark.parametrize("page", PAGES)
def test_commands_and_options_exist(page):
    for block in blocks(page):
        if block.language == "python":
            compile(block.code, page, "exec")
        for command in block.commands if block.language in ("", "sh", "text") else []:
            match = re.search(r"(?:^|[ /])refine (\S+)(.*)", command)
            if match is None or match[1] == "…" or (block.language == "text" and match[1] not in COMMANDS):
                continue
            assert match[1] in COMMANDS or match[1].startswith("-"), f"{page}: {command}: no such command"
            for option in re.findall(r"(?<=\s)--[\w.-]+", match[2]) if match[1] in COMMANDS else []:
                known = re.search(re.escape(option) + r"(?![\w.-])", help_of(match[1]))
                known = known or (match[1] == "train" and option.removeprefix("--") in config_paths())
                assert known, f"{page}: {command}: no option {option}"


@cache
def help_of(command: str) -> str:
    output = io.StringIO()
    with redirect_stdout(output), pytest.raises(SystemExit):
        main([command, "--help"])
    return output.getvalue()


@pytest.mark.parametrize("page", PAGES)
def test_links_within_the_repository(page):
    for target in set(re.findall(r"\]\(([^)#:\s]+)", PAGES[page].read_text(encoding="utf-8"))):
        path = Path(os.path.normpath(PAGES[page].parent / target))
        generated = (ROOT / "docs/reference", ROOT / "docs/images")
        assert path.exists() or path.is_relative_to(generated[0]) or path.is_relative_to(generated[1]), target


def test_error_messages_are_those_of_the_code():
    """The fixed parts of each message in docs/errors.md occur in one string of the source."""
    source = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "refine").rglob("*.py"))
    source = re.sub(r'"\s*\n\s*f?"', "", source)  # adjacent literals are one string
    strings = [re.sub(r"\{[^{}]*\}", "…", text) for text in re.findall(r'"((?:[^"\\\n]|\\.)*)"', source)]
    messages = re.findall(r"^\| `(.*?)` \|", PAGES["docs/errors.md"].read_text(encoding="utf-8"), re.MULTILINE)
    assert len(messages) > 20
    for message in messages:
        parts = [part for part in re.split("…", message) if len(part.strip(" ;:,()")) > 3]
        pattern = re.compile(".*".join(map(re.escape, parts)))
        assert any(pattern.search(text) for text in strings), message


@pytest.mark.parametrize("name", refine.__all__)
def test_examples_of_docstrings(name):
    """Examples run with the names of their module, `refine` and `np`, as they do after the obvious imports."""
    target = getattr(refine, name)
    module = sys.modules[getattr(target, "__module__", target.__name__)]
    names = vars(module) | {"refine": refine, "np": np}
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    for example in doctest.DocTestFinder(recurse=False).find(target, name, module=module, extraglobs=names):
        assert not runner.run(example, out=lambda text: None).failed, f"{name}: {example.examples[0].source}"
