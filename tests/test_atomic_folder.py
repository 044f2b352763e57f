"""Folders of models are replaced whole, or not at all."""

import shutil
import time
from pathlib import Path

import pytest
from helpers.kill import run_until_killed

from refine.checkpoint import find
from refine.errors import RefineError
from refine.files import write_text
from refine.folders import atomic_folder, exchange


def test_failure_keeps_the_old_folder(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "old").touch()

    class Unplugged(Exception):
        pass

    def write() -> None:
        with atomic_folder(tmp_path / "model") as temporary:
            (temporary / "new").touch()
            raise Unplugged

    with pytest.raises(Unplugged):
        write()
    assert [p.name for p in tmp_path.rglob("*")] == ["model", "old"]


FILE_OPERATIONS = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree", "ctypes.dlsym"}


def replace_in_child(folder: Path, kill_at: int) -> bool:
    """Replace a folder in a forked process that ends before a file operation; return whether it got there."""
    done = 0

    def kill(event: str, args: tuple) -> bool:
        nonlocal done
        done += event in FILE_OPERATIONS
        return done > kill_at

    def replace() -> None:
        with atomic_folder(folder) as temporary:
            for name in ("model.safetensors", "config.json"):
                write_text(temporary / name, "new")

    code = run_until_killed(replace, kill)
    assert code in (0, 137)
    return code == 137


def test_a_kill_leaves_the_old_or_the_new_folder(tmp_path: Path) -> None:
    folder, found, number = tmp_path / "model", set(), 0
    if not exchange(tmp_path, tmp_path):
        pytest.skip("this file system cannot exchange names")
    while True:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for name in ("model.safetensors", "config.json"):
            (folder / name).write_text("old")
        killed = replace_in_child(folder, number)
        (content,) = {(folder / name).read_text() for name in ("model.safetensors", "config.json")}
        found.add(content)
        if not killed:
            break
        number += 1
    assert number > 10
    assert found == {"old", "new"}
    assert content == "new"


def test_a_kill_without_exchange_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("refine.folders.exchange", lambda *paths: False)
    model, rename = tmp_path / "model", Path.rename
    model.mkdir()
    (model / "config.json").write_text("old")
    broken: list[type[BaseException]] = [KeyboardInterrupt, OSError]

    def interrupted(path: Path, target: Path) -> Path:
        if target == model and path.suffix != ".old" and broken:
            raise broken.pop()
        return rename(path, target)

    def write() -> None:
        with atomic_folder(model) as temporary:
            (temporary / "config.json").write_text("new")

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(RefineError, match="cannot be written"):
        write()
    assert [p.name for p in tmp_path.iterdir()] == ["model"]  # put back
    with pytest.raises(KeyboardInterrupt):  # a kill
        write()
    with pytest.raises(RefineError, match=r"model: a killed process did not finish .* rename \S+\.model\.old to"):
        find.find_model(model)
    (old,) = tmp_path.iterdir()
    old.rename(model)
    write()
    assert [(p.name, (p / "config.json").read_text()) for p in tmp_path.iterdir()] == [("model", "new")]


def test_links_to_folders_are_kept_and_files_raise(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with atomic_folder(tmp_path / "link") as temporary:
        (temporary / "new").touch()
    assert (tmp_path / "link").is_symlink()
    assert [p.name for p in (tmp_path / "real").iterdir()] == ["new"]
    with pytest.raises(RefineError, match="expected a folder, got a file"), atomic_folder(tmp_path / "real/new"):
        pass
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["link", "new", "real"]


def test_an_empty_folder_is_filled_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be a mounted volume or a working directory; what is written last comes last."""
    folder, moved, rename = tmp_path / "data", [], Path.rename
    folder.mkdir()
    inode = folder.stat().st_ino
    monkeypatch.setattr(Path, "rename", lambda path, target: moved.append(target.name) or rename(path, target))
    with atomic_folder(folder) as temporary:
        for name in ("segments/a.png", "images/a.jpg", "panoptic.json"):
            write_text(temporary / name, name)
            time.sleep(0.01)  # file systems may count in ticks of the clock
        assert [path.name for path in tmp_path.iterdir()] == ["data"]
    assert folder.stat().st_ino == inode
    assert moved == ["segments", "images", "panoptic.json"]
    assert sorted(path.name for path in folder.rglob("*.*")) == ["a.jpg", "a.png", "panoptic.json"]


@pytest.mark.parametrize("name", ["thesis.txt", "config.json/"])
def test_what_is_not_replaced_is_never_deleted(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").touch()
    (folder / name).mkdir() if name.endswith("/") else (folder / name).touch()
    before = sorted(tmp_path.rglob("*"))

    def write() -> None:
        with atomic_folder(folder) as temporary:
            for file in ("model.safetensors", "config.json"):
                (temporary / file).touch()

    with pytest.raises(RefineError, match=f"{Path(name).name} in it would be deleted; choose another path"):
        write()
    assert sorted(tmp_path.rglob("*")) == before
