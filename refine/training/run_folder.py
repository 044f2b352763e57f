"""The folder of a training run, which is whole at every moment.

OUT/last                                 name of the newest checkpoint
OUT/best                                 name of the checkpoint with the highest PQ
OUT/checkpoints/step_000500/             see `refine.training.state`

A checkpoint is written once and never replaced; its metrics are added by replacing its config.json. `last` and
`best` follow from the checkpoints, so `recover` can write them anew.
"""

from __future__ import annotations

import fcntl
import re
import shutil
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from refine.errors import RefineError
from refine.files import read_json, write_json, write_text


@contextmanager
def run_lock(out: str | Path) -> Iterator[None]:
    """Hold a run's folder for this process; the lock ends with the process, however it ends.

    Raises:
        RefineError: another process holds it, or the folder cannot be written.
    """
    out = Path(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        file = (out / ".lock").open("a+", encoding="utf-8")
    except OSError as error:
        raise RefineError(f"{out}: cannot be written ({error.strerror}); name another --out") from error
    with file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            raise RefineError(
                f"{out}: another training writes into this folder; wait until it ends, or name another --out"
            ) from error
        except OSError as error:
            warnings.warn(
                f"{out}: cannot be locked ({error.strerror}); make sure that no other training writes into it",
                stacklevel=3,
            )
        yield


def checkpoint_path(out: str | Path, step: int) -> Path:
    """Folder of the checkpoint of a step."""
    return Path(out) / "checkpoints" / f"step_{step:06d}"


def list_checkpoints(out: str | Path) -> list[Path]:
    """Folders of a run's checkpoints, the oldest first."""
    try:
        found = [path for path in (Path(out) / "checkpoints").iterdir() if re.fullmatch(r"step_\d+", path.name)]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(found, key=_step)


def last_checkpoint(out: str | Path) -> Path | None:
    """Folder of the newest checkpoint of a run, or None if it has none."""
    found = list_checkpoints(out)
    return found[-1] if found else None


def write_metrics(folder: Path, metrics: dict[str, Any]) -> None:
    """Add to a checkpoint what was measured of it."""
    path = folder / "config.json"
    write_json(path, read_json(path) | {"metrics": metrics}, indent=1)


def read_metrics(folder: Path) -> dict[str, Any]:
    """What was measured of a checkpoint; empty if it has not been evaluated."""
    path = folder / "config.json"
    metrics = read_json(path).get("metrics", {}) if path.is_file() else {}
    return metrics if isinstance(metrics, dict) else {}


def best_checkpoint(out: str | Path, known: dict[str, float]) -> dict[str, float]:
    """{"step": …, "PQ": …} of the best evaluation, the first of equals; empty without one.

    Args:
        out: folder of the run.
        known: the best evaluation that a checkpoint remembers; its own checkpoint may be gone.
    """
    found = [known] if known else []
    for folder in list_checkpoints(out):
        pq = read_metrics(folder).get("PQ")
        if isinstance(pq, float):
            found.append({"step": _step(folder), "PQ": pq})
    return max(found, key=lambda best: (best["PQ"], -best["step"]), default={})


def update_pointers(out: str | Path, best: dict[str, float], keep: int) -> None:
    """Write `last` and `best`, then remove all checkpoints but these two and the newest.

    Args:
        out: folder of the run, with at least one checkpoint.
        best: see `best_checkpoint`.
        keep: number of newest checkpoints that stay.
    """
    out, folders = Path(out), list_checkpoints(out)
    kept = {folder.name for folder in folders[-keep:]}
    _point(out / "last", folders[-1].name)
    folder = checkpoint_path(out, int(best.get("step", -1)))
    if folder in folders:
        _point(out / "best", folder.name)
        kept.add(folder.name)
    else:
        (out / "best").unlink(missing_ok=True)
    for folder in folders:
        if folder.name not in kept:
            doomed = folder.with_name(f".{uuid.uuid4().hex[:8]}.{folder.name}")
            folder.rename(doomed)  # so that no half of it is taken for a checkpoint
            shutil.rmtree(doomed)


def recover(out: str | Path, keep: int) -> Path | None:
    """Bring a run's folder in order after a crash; returns its newest checkpoint, or None if it has none."""
    out = Path(out)
    for path in [*out.glob(".*"), *out.glob("checkpoints/.*"), *out.glob("checkpoints/step_*/.*")]:
        moved = re.fullmatch(r"\.[0-9a-f]{8}\.(step_\d+)\.old", path.name)
        if moved and not path.with_name(moved[1]).exists():
            path.rename(path.with_name(moved[1]))  # earlier versions moved a checkpoint away to replace it
        elif re.match(r"\.[0-9a-f]+\.", path.name):  # half-written, or half-removed
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    last = last_checkpoint(out)
    if last is not None:
        update_pointers(out, best_checkpoint(out, read_json(last / "state.json")["best"]), keep)
    return last


def _step(folder: Path) -> int:
    return int(folder.name.removeprefix("step_"))


def _point(pointer: Path, name: str) -> None:
    if not pointer.is_file() or pointer.read_text(encoding="utf-8").strip() != name:
        write_text(pointer, name + "\n")
