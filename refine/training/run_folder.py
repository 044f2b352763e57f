"""Folder of a training run, which is consistent at every moment.

OUT/last                                 name of the newest checkpoint
OUT/best                                 name of the checkpoint with the highest PQ
OUT/checkpoints/step_000500/             see `refine.training.state`

A checkpoint is written once and never replaced; metrics are added by replacing its config.json. `last` and `best`
are derived from the checkpoints, so that `recover` can rewrite them.
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

REPLACED = ("log.jsonl", "curves.png", "last", "best")
"""Files that a new run would replace."""


@contextmanager
def run_lock(out: str | Path) -> Iterator[None]:
    """Lock a run's folder for this process; the lock is released when the process ends, even if it is killed.

    Raises:
        RefineError: another process holds the lock, the folder cannot be written, or it holds files of `REPLACED`
            although no run began in it.
    """
    out = Path(out)
    foreign = [] if (out / ".lock").exists() or last_checkpoint(out) else [out / name for name in REPLACED]
    for path in foreign:
        if path.exists():
            raise RefineError(
                f"{path}: was not written by a run of refine, and would be replaced; choose another --out"
            )
    try:
        out.mkdir(parents=True, exist_ok=True)
        file = (out / ".lock").open("a+", encoding="utf-8")
    except OSError as error:
        raise RefineError(f"{out}: cannot be written ({error.strerror}); choose another --out") from error
    with file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            raise RefineError(
                f"{out}: another run writes into this folder; wait until it ends, or choose another --out"
            ) from error
        except OSError as error:
            warnings.warn(
                f"{out}: cannot be locked ({error.strerror}); make sure that no other run writes into it",
                stacklevel=3,
            )
        yield


def checkpoint_path(out: str | Path, step: int) -> Path:
    """Return the folder of the checkpoint at a step."""
    return Path(out) / "checkpoints" / f"step_{step:06d}"


def list_checkpoints(out: str | Path) -> list[Path]:
    """List the folders of a run's checkpoints, the oldest first."""
    try:
        found = [path for path in (Path(out) / "checkpoints").iterdir() if re.fullmatch(r"step_\d+", path.name)]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(found, key=_step)


def last_checkpoint(out: str | Path) -> Path | None:
    """Return the folder of a run's newest checkpoint, or None if there is none."""
    found = list_checkpoints(out)
    return found[-1] if found else None


def write_metrics(folder: Path, metrics: dict[str, Any]) -> None:
    """Add evaluation metrics to a checkpoint."""
    path = folder / "config.json"
    write_json(path, read_json(path) | {"metrics": metrics}, indent=1)


def read_metrics(folder: Path) -> dict[str, Any]:
    """Read the evaluation metrics of a checkpoint; empty if it has not been evaluated."""
    path = folder / "config.json"
    metrics = read_json(path).get("metrics", {}) if path.is_file() else {}
    return metrics if isinstance(metrics, dict) else {}


def best_checkpoint(out: str | Path, known: dict[str, float]) -> dict[str, float]:
    """Return {"step": …, "PQ": …} of the best evaluation, the earliest on a tie; empty if there is none.

    Args:
        out: folder of the run.
        known: best evaluation stored in a checkpoint's state.json; its checkpoint may have been removed.
    """
    found = [known] if known else []
    for folder in list_checkpoints(out):
        pq = read_metrics(folder).get("PQ")
        if isinstance(pq, float):
            found.append({"step": _step(folder), "PQ": pq})
    return max(found, key=lambda best: (best["PQ"], -best["step"]), default={})


def update_pointers(out: str | Path, best: dict[str, float], keep: int) -> None:
    """Write `last` and `best`, then remove all checkpoints except the best and the newest ones.

    Args:
        out: folder of the run, with at least one checkpoint.
        best: result of `best_checkpoint`.
        keep: number of newest checkpoints to keep.
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
            folder.rename(doomed)  # a partly removed folder must not pass for a checkpoint
            shutil.rmtree(doomed)


def recover(out: str | Path, keep: int) -> Path | None:
    """Repair a run's folder after a crash; return its newest checkpoint, or None if there is none."""
    out = Path(out)
    for path in [*out.glob(".*"), *out.glob("checkpoints/.*"), *out.glob("checkpoints/step_*/.*")]:
        moved = re.fullmatch(r"\.[0-9a-f]{8}\.(step_\d+)\.old", path.name)
        if moved and not path.with_name(moved[1]).exists():
            path.rename(path.with_name(moved[1]))  # earlier versions moved a checkpoint away to replace it
        elif re.match(r"\.([0-9a-f]{8}|[0-9a-f]{32})\.", path.name):  # partly written or partly removed
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
