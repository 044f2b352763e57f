"""The documentation site builds without warnings, needs no network, and its links lead somewhere."""

import importlib.util
import re
import sys
from collections import defaultdict
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "docs/site"))

from names import NAME, locate  # noqa: E402

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


class Page(HTMLParser):
    """Anchors, links and loaded files of an HTML page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors, self.links, self.assets = {""}, [], []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.anchors |= {values[name] for name in ("id", "name") if values.get(name)}
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        elif tag == "link" and values.get("rel") not in ("prev", "next", "canonical"):
            self.assets.append(values["href"])
        elif values.get("src"):
            self.assets.append(values["src"])


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    if importlib.util.find_spec("zensical") is None or importlib.util.find_spec("mkdocstrings") is None:
        pytest.skip('needs the extra docs: pip install "refine-panoptic[docs]"')
    from build import build

    return build(tmp_path_factory.mktemp("docs"))


@pytest.fixture(scope="module")
def pages(site):
    return {path: Page(path) for path in site.rglob("*.html") if path.name != "404.html"}


def test_every_link_and_anchor_leads_somewhere(site, pages):
    broken = []
    for path, page in pages.items():
        for link in page.links + page.assets:
            parts = urlsplit(link)
            if parts.scheme:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if target.is_dir():
                target /= "index.html"
            if not target.is_file():
                broken.append(f"{path.relative_to(site)}: {link}: no such file")
            elif target in pages and unquote(parts.fragment) not in pages[target].anchors:
                broken.append(f"{path.relative_to(site)}: {link}: no such anchor")
    assert not broken, "\n".join(sorted(broken))


def test_nothing_is_loaded_from_the_network(site, pages):
    loaded = defaultdict(list)
    for path, page in pages.items():
        for asset in page.assets:
            if urlsplit(asset).netloc:
                loaded[asset].append(path.name)
    for path in site.rglob("*.css"):
        for asset in re.findall(
            r"(?:url\(|@import\s*)[\"']?((?:https?:)?//[^\"')]+)", path.read_text(encoding="utf-8")
        ):
            loaded[asset].append(path.name)
    assert not loaded


def test_every_public_name_and_command_has_its_reference(site):
    import refine
    from refine.cli.main import COMMANDS

    for name in refine.__all__:
        text = (site / "docs/reference/api" / f"{name}.html").read_text(encoding="utf-8")
        assert 'class="doc doc-contents' in text
    commands = (site / "docs/reference/commands.html").read_text(encoding="utf-8")
    assert all(f"usage: refine {name}" in commands for name in COMMANDS)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_names_of_the_code_exist(page):
    for name in NAME.findall(page.read_text(encoding="utf-8")):
        if not name.endswith((".yaml", ".py", ".safetensors", ".json")):
            locate(name)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_of_the_code_exist(page):
    for path in re.findall(
        r"`((?:refine|tests|docs|configs|benchmarks|examples|\.ci)/[\w./-]+)`", page.read_text()
    ):
        assert "NAME" in path or (ROOT / path).exists(), path


def test_a_name_is_found_where_it_is_defined():
    path, line = locate("refine.structures.categories.Categories.index")
    assert "def index(" in (ROOT / path).read_text().splitlines()[line - 1]
    assert locate("refine.files") == ("refine/files.py", 1)
    for unknown in ("refine.nowhere", "refine.files.nothing"):
        with pytest.raises(LookupError):
            locate(unknown)
