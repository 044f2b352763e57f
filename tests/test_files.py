"""Files are written completely or not at all, with a one-line error."""

import errno
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.disk import full_disk

from refine.checkpoint.folder import write_weights
from refine.data.synthetic.scenes import _write
from refine.drawing.overlay import write_image
from refine.errors import RefineError, WriteError
from refine.evaluation.interval import Counts, write_counts
from refine.files import append_bytes, read_json, user_cache, write_bytes, write_json, write_text
from refine.formats.id_png import write_png

RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 255, (3, 64, 64), dtype=np.uint8)
COUNTS = Counts(RNG.integers(0, 10**9, (50, 5, 2)), np.zeros((50, 2), np.int64), np.array([True, False]))
WRITERS = {
    "a.bin": lambda path: write_bytes(path, NOISE.tobytes()),
    "a.txt": lambda path: write_text(path, "ä" * 3000),
    "a.json": lambda path: write_json(path, NOISE.tolist()),
    "ids.png": lambda path: write_png(path, NOISE[0].astype(np.int32)),
    "a.png": lambda path: write_image(path, torch.from_numpy(NOISE)),
    "a.jpg": lambda path: write_image(path, torch.from_numpy(NOISE), "model x"),
    "scene.png": lambda path: _write(path, NOISE.transpose(1, 2, 0), []),
    "a.npz": lambda path: write_counts(path, COUNTS),
    "a.safetensors": lambda path: write_weights(path, {"w": torch.zeros(2000)}),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_leaves_the_earlier_file(name, tmp_path):
    path = tmp_path / "sub" / name
    WRITERS[name](path)
    whole = path.read_bytes()
    assert len(whole) > 1024
    path.write_bytes(b"old")
    expected = rf"{re.escape(str(path))}: cannot be written \(File too large\); free space"
    with full_disk(), pytest.raises(WriteError, match=expected):
        WRITERS[name](path)
    assert [p.name for p in path.parent.iterdir()] == [name]
    assert path.read_bytes() == b"old"


def test_late_write_errors_are_raised(tmp_path, monkeypatch):
    def fail(_):
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(WriteError, match="Disk quota exceeded"):
        write_bytes(tmp_path / "a", b"1")
    assert not list(tmp_path.iterdir())


def test_impossible_paths_are_reported(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    for path in (tmp_path / "file" / "a", tmp_path / ("n" * 300), tmp_path / "file" / "b" / "c"):
        with pytest.raises(WriteError, match="cannot be written"):
            write_bytes(path, b"1")
    write_bytes(tmp_path / ("n" * 250), b"1")  # a name as long as the file system allows
    assert sorted(len(p.name) for p in tmp_path.iterdir()) == [4, 250]


def test_files_get_the_default_permissions(tmp_path):
    write_bytes(tmp_path / "a", b"1")
    (tmp_path / "b").write_bytes(b"1")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


DIRECT = re.compile(
    r'\.write_(text|bytes)\(|\.tofile\(|imwrite\(|save_file\(|open\([^)]*"[wax]|(\.save|savefig)\((path|temporary)'
)
EXEMPT = {
    "files.py",  # the atomic writer itself
    "training/logs.py",  # grows line by line
    "formats/journal.py",
    "formats/image_like.py",  # a temporary file
    "checkpoint/download.py",  # a download that resumes, checked before it gets its name
    "training/run_folder.py",  # a lock
    "cli/main.py",  # the null device
    "formats/results/label_images.py",  # memory
}


def test_all_files_are_written_atomically():
    package = Path(__file__).resolve().parents[1] / "refine"
    found = {
        f"{path.relative_to(package)}: {line.strip()}"
        for path in package.rglob("*.py")
        for line in path.read_text().splitlines()
        if DIRECT.search(line) and str(path.relative_to(package)) not in EXEMPT
    }
    assert not found


@pytest.mark.parametrize("content", ["[" * 100_000, '{"a":' * 100_000, "1" * 5000, "", "nul"])
def test_invalid_json_is_reported_in_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(RefineError, match=r"x.json: is (not valid JSON|nested too deeply)") as error:
        read_json(tmp_path / "x.json")
    assert "\n" not in str(error.value)


def test_only_regular_files_within_the_limit_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "x.json").write_text("[1]")
    for path, message in (
        ("/dev/zero", "is not a regular file"),
        (tmp_path / "pipe", "is not a regular file"),
        (tmp_path, "Is a directory"),
        ("a\0b", "cannot be read"),
        ("a" * 5000, "File name too long"),
    ):
        with pytest.raises(RefineError, match=message):
            read_json(path)
    assert read_json(tmp_path / "x.json") == [1]
    monkeypatch.setattr("refine.files.MAX_BYTES", 2)
    with pytest.raises(RefineError, match="has 3 bytes, expected at most 2"):
        read_json(tmp_path / "x.json")


def test_json_in_other_encodings(tmp_path: Path) -> None:
    for encoding in ("utf-8-sig", "utf-16"):
        (tmp_path / "x.json").write_text('["é"]', encoding=encoding)
        assert read_json(tmp_path / "x.json") == ["é"]


def test_a_line_is_appended_whole_or_not_at_all(tmp_path):
    with (tmp_path / "log").open("ab", buffering=0) as file:
        append_bytes(file, b"one\n")
        with full_disk(10), pytest.raises(OSError, match=r"No space|too large"):  # in the middle of a line
            append_bytes(file, b"a longer line\n")
        assert (tmp_path / "log").read_bytes() == b"one\n"
        append_bytes(file, b"two\n")
    assert (tmp_path / "log").read_bytes() == b"one\ntwo\n"


@pytest.mark.parametrize(
    ("cache", "home", "expected"),
    [
        ("/c", "/h", "/c/refine"),
        ("", "/h", "/h/.cache/refine"),
        ("relative", "/h", "/h/.cache/refine"),
        ("relative", "relative", None),
        ("", None, None),  # and the user has no entry in the password file
    ],
)
def test_the_cache_is_never_in_the_working_directory(cache, home, expected, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", cache)
    if home is None:
        monkeypatch.delenv("HOME")
        monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)
    else:
        monkeypatch.setenv("HOME", home)
    assert user_cache() == expected
