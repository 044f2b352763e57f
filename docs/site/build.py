"""Build the documentation site, without network: python docs/site/build.py [FOLDER]

FOLDER (default: build/docs) gets site/index.html and pages/, the staged sources. The repository's Markdown files
keep their places, so that a link works in the repository and on the site. Generated pages are written to
docs/reference. A warning fails the build.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from names import ROOT, with_lines
from reference import api_pages, commands_page, configs_page, extras_table

PAGES = [
    "*.md",
    "docs/**/*.md",
    "configs/README.md",
    "refine/weights/*/README.md",
    "docs/site/*.css",
    "docs/site/*.js",
]
NAV = {
    "Learn": ["start", "train", "fuse", "measure", "microscopy", "deploy"],
    "Guides": [
        "models",
        "data",
        "large-images",
        "results",
        "export",
        "scale",
        "fusion",
        "formats",
        "errors",
        "install",
        "glossary",
    ],
    "Method": ["paper", "method", "decisions"],
}
"""Pages of docs/ by section; a page that is not named here is added to the guides."""
PROJECT = ["RESULTS.md", "configs/README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"]
LINK = re.compile(r"\]\(([^)#:\s]+)")


def build(stage: Path) -> Path:
    """Stage the pages in a new or replaced folder and build the site; return the folder of the site.

    Raises:
        RuntimeError: the build warns or fails; with its output.
    """
    shutil.rmtree(stage, ignore_errors=True)
    pages = stage / "pages"
    for pattern in PAGES:
        for path in sorted(ROOT.glob(pattern)):
            _stage(path, pages)
    _generate(pages / "docs" / "reference", pages / "docs" / "images")
    config = (ROOT / "docs/site/zensical.toml").read_text(encoding="utf-8")
    config = config.replace("[project]\n", f"[project]\nnav = {_nav(pages)}\n", 1)
    (stage / "zensical.toml").write_text(config, encoding="utf-8")
    command = [str(Path(sys.executable).with_name("zensical")), "build", "--clean", "--strict"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "NO_COLOR": "1"}
    done = subprocess.run(command, cwd=stage, env=environment, capture_output=True, text=True, check=False)
    output = done.stdout + done.stderr
    if done.returncode or re.search(r"warning", output, re.IGNORECASE):
        raise RuntimeError(f"the site does not build without warnings:\n{output}")
    return stage / "site"


def _stage(path: Path, pages: Path) -> None:
    """Copy a page and the files that it links to; file and line are added to the code's names in docs/paper.md."""
    target = pages / path.relative_to(ROOT)
    target.parent.mkdir(parents=True, exist_ok=True)
    text = path.read_text(encoding="utf-8")
    staged = (
        with_lines(text) if path.name == "paper.md" else text.replace("<!-- generated: extras -->", extras_table())
    )
    target.write_text(staged, encoding="utf-8")
    for link in LINK.findall(text):
        linked = (path.parent / link).resolve()
        if linked.is_file() and linked.suffix != ".md" and linked.is_relative_to(ROOT):
            copy = pages / linked.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(linked, copy)


def _generate(reference: Path, images: Path) -> None:
    """Write the pages and figures that are derived from the code."""
    from figures import draw_exchange, draw_network, draw_sheet

    texts = {"commands.md": commands_page(), "config.md": configs_page()}
    texts |= {f"api/{name}": text for name, text in api_pages().items()}
    for name, text in texts.items():
        path = reference / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    images.mkdir(parents=True, exist_ok=True)
    draw_network(images / "network.svg")
    draw_exchange(images / "exchange.svg")
    draw_sheet(images / "why.png")


def _nav(pages: Path) -> str:
    """Return the navigation as TOML: the README, the pages of docs/, the reference, and the project's files."""
    found = {path.stem for path in (pages / "docs").glob("*.md")}
    sections = {title: [name for name in names if name in found] for title, names in NAV.items()}
    sections["Guides"] += sorted(found - {name for names in sections.values() for name in names})
    parts = ['{ "Home" = "README.md" }']
    parts += [_section(title, [f"docs/{name}.md" for name in names]) for title, names in sections.items() if names]
    api = _section("Python", [f"docs/reference/api/{path.name}" for path in _api(pages)])
    parts.append(f'{{ "Reference" = ["docs/reference/commands.md", "docs/reference/config.md", {api}] }}')
    parts.append(_section("Project", PROJECT))
    return "[" + ", ".join(parts) + "]"


def _api(pages: Path) -> list[Path]:
    return sorted((pages / "docs/reference/api").glob("*.md"), key=lambda path: path.name.lower())


def _section(title: str, paths: list[str]) -> str:
    return f'{{ "{title}" = [{", ".join(f"{path!r}" for path in paths)}] }}'


if __name__ == "__main__":
    print(build(Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "build/docs")) / "index.html")
