"""The README's Python runs as it stands there."""

import re
from pathlib import Path

import pytest
from PIL import Image

README = (Path(__file__).resolve().parents[1] / "README.md").read_text()


def test_python(tmp_path, monkeypatch, capsys):
    mahotas = pytest.importorskip("mahotas")
    whole = Image.open(Path(mahotas.__file__).parent / "demos" / "data" / "nuclear.png")
    whole.crop((0, 0, 640, 480)).save(tmp_path / "cells.png")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
        exec(block, names)
    assert "nucleus" in capsys.readouterr().out
    assert names["mask"].any()
    assert Image.open("overlay.jpg").size == (640, 480)
    assert Path("out/panoptic.json").is_file()
    # The better of two overlapping objects keeps its pixels; stuff takes the rest.
    areas = {segment.score: segment.area for segment in names["fused"].segments}
    assert areas == {0.9: 200 * 200, 0.8: 200 * 300 - 100 * 100, None: 480 * 640 - 200 * 200 - 50_000}


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\(([^)#:]+)\)", README))))
def test_links(target):
    assert (Path(__file__).resolve().parents[1] / target).exists()
