"""Tests that procedural scenes follow their depth order and are reproducible."""

import json
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from helpers.kill import run_until_killed
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from refine.cli.main import main
from refine.data.coco_panoptic import CocoPanoptic
from refine.data.synthetic import scenes
from refine.data.synthetic.scenes import CATEGORIES, MIN_VISIBLE, Scene, generate, make_scene
from refine.errors import RefineError
from refine.formats.id_png import read_png

NAMES = {category["id"]: category["name"] for category in CATEGORIES}
ISTHING = {category["id"]: category["isthing"] for category in CATEGORIES}


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 10**6),
    index=st.integers(0, 10**6),
    size=st.tuples(st.integers(64, 110), st.integers(64, 110)),
    most=st.integers(0, 14),
)
def test_a_pixel_belongs_to_the_nearest_thing_that_covers_it(
    seed: int, index: int, size: tuple[int, int], most: int
) -> None:
    scene = make_scene(seed, index, size, (most // 2, most))
    assert (scene.image.shape, scene.image.dtype) == ((*size, 3), np.uint8)
    assert scene.ids.shape == size
    things = [s for s in scene.segments if ISTHING[s["category_id"]]]
    assert scene.segments[: len(things)] == things
    assert [s["depth"] for s in things] == list(range(len(things)))
    assert len(scene.masks) == len(things) <= most
    free = np.ones(size, bool)
    for mask, segment in zip(scene.masks, things, strict=True):  # nearest first
        np.testing.assert_array_equal(scene.ids == segment["id"], mask & free)
        free &= ~mask
        assert segment["area"] >= MIN_VISIBLE
    stuff = scene.segments[len(things) :]
    assert all("depth" not in s for s in stuff)
    assert len({s["category_id"] for s in stuff}) == len(stuff)
    np.testing.assert_array_equal(np.isin(scene.ids, [s["id"] for s in stuff]), free)
    numbers = [s["id"] for s in scene.segments]
    assert len(set(numbers)) == len(numbers)
    assert min(numbers) > 0
    assert max(numbers) < 1 << 24
    for s in scene.segments:
        ys, xs = np.nonzero(scene.ids == s["id"])
        assert s["area"] == len(ys)
        assert s["bbox"] == [xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1]


@pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")
def test_files_are_consistent(tmp_path: Path) -> None:
    generate(tmp_path, 4, size=(80, 120), seed=2, things=(6, 10))
    panoptic = json.loads((tmp_path / "panoptic.json").read_text())
    instances = json.loads((tmp_path / "instances.json").read_text())
    assert [image["id"] for image in panoptic["images"]] == [0, 1, 2, 3]
    assert all(category["isthing"] for category in instances["categories"])
    dataset = CocoPanoptic(
        tmp_path / "images",
        tmp_path / "panoptic.json",
        tmp_path / "segments",
        instances=tmp_path / "instances.json",
    )
    hidden = 0
    for n, annotation in enumerate(panoptic["annotations"]):
        ids = read_png(tmp_path / "segments" / annotation["file_name"])
        things = {s["id"]: s for s in annotation["segments_info"] if "depth" in s}
        wholes = [a for a in instances["annotations"] if a["image_id"] == n]
        assert sorted(a["segment_id"] for a in wholes) == sorted(things)
        for a in wholes:
            whole = coco_mask.decode(a["segmentation"] | {"counts": a["segmentation"]["counts"].encode()})
            visible = ids == things[a["segment_id"]]["id"]
            assert (whole[visible] == 1).all()
            assert a["area"] == whole.sum()
            assert (a["depth"], a["category_id"]) == (
                things[a["segment_id"]]["depth"],
                things[a["segment_id"]]["category_id"],
            )
            hidden += int(whole.sum() - visible.sum())
        image, segments = dataset[n]
        assert image.shape == (3, 80, 120)
        targets = segments.targets(dataset.categories.num_things, n, "")
        assert len(targets) == len(things)
        assert len(targets.owner[targets.owner >= 0].unique()) == len(things)
    assert hidden > 0


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    def written(name: str, **more: int) -> dict[str, bytes]:
        generate(tmp_path / name, size=(64, 64), **({"images": 2, "seed": 4} | more))
        return {str(p.relative_to(tmp_path / name)): p.read_bytes() for p in (tmp_path / name).rglob("*.*g")}

    first = written("a")
    assert len(first) == 4
    assert written("b") == first
    more = written("c", images=3)  # a longer data set begins with the shorter one
    assert {name: more[name] for name in first} == first
    other = written("d", seed=5)
    assert all(other[name] != first[name] for name in first)


def test_class_and_depth_are_correlated() -> None:
    """Thin things lie in front of flat ones four times in five."""
    thin, front = {"ring", "bar", "cross"}, []
    for n in range(60):
        scene = make_scene(0, n, (64, 64), (8, 14))
        names = [NAMES[s["category_id"]] for s in scene.segments if "depth" in s]
        pairs = [pair for pair in combinations(names, 2) if "star" not in pair]  # the nearer one first
        front += [near in thin for near, far in pairs if (near in thin) != (far in thin)]
    assert len(front) > 300
    assert np.mean(front) == pytest.approx(0.8, abs=0.08)


def test_an_interrupted_data_set_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()

    def draw(seed: int, index: int, *others: object) -> Scene:
        if index == 1:
            raise KeyboardInterrupt
        return make_scene(seed, index, (64, 64))

    monkeypatch.setattr(scenes, "make_scene", draw)
    for name in ("new", "empty"):
        assert main(["synthesize", str(tmp_path / name), "--images", "2", "--size", "64", "64"]) == 130
    assert [path.name for path in tmp_path.rglob("*")] == ["empty"]
    killed = run_until_killed(
        lambda: generate(tmp_path / "new", 1, (64, 64)),
        lambda event, arguments: event == "os.rename" and arguments[1].endswith("panoptic.json"),
    )
    assert killed == 137
    assert not (tmp_path / "new").exists()
    generate(tmp_path / "new", 1, (64, 64))  # what was left does not hinder it


def test_invalid_arguments_raise(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for wrong in ({"images": 0}, {"size": (63, 100)}, {"seed": -1}, {"things": (5, 4)}, {"things": (-1, 4)}):
        with pytest.raises(RefineError, match="give at least one image, sides of at least 64"):
            generate(tmp_path / "out", **({"images": 1} | wrong))
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").touch()
    assert main(["synthesize", str(tmp_path / "file"), "--images", "1", "--size", "64", "64"]) == 1
    assert main(["synthesize", str(tmp_path / "out"), "--images", "1", "--size", "64", "80"]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"written to {tmp_path / 'out'}\n"
    assert captured.err.count("\n") == 1
    assert (tmp_path / "out" / "images" / "000000.jpg").exists()
