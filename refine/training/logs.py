"""What a run tells: lines of JSON, TensorBoard, and a progress bar."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from refine.errors import RefineError
from refine.files import write_text
from refine.training.config import LogConfig

WIDTH = 80
"""Columns of a line on the screen."""


class RunLog:
    """Writes OUT/log.jsonl and OUT/tensorboard, and draws the bar; does nothing where not active.

    A context manager: leaving it closes the files.

    Args:
        out: folder of the run.
        config: what to write.
        step: updates already done; later lines of an interrupted run are dropped.
        max_steps: updates in all.
        active: only the first of several processes logs.
        measured: whether the evaluation of that step is kept; otherwise its lines are dropped, too.
    """

    def __init__(
        self, out: str | Path, config: LogConfig, step: int, max_steps: int, active: bool, measured: bool
    ) -> None:
        self.active = active
        if not active:
            return
        out = Path(out)
        self.path = out / "log.jsonl"
        try:
            out.mkdir(parents=True, exist_ok=True)
            _drop_after(self.path, step, measured)
            self.file = self.path.open("a", encoding="utf-8", buffering=1)
        except OSError as error:
            raise RefineError(f"{out}: cannot be written ({error.strerror}); name another --out") from error
        self.board = SummaryWriter(str(out / "tensorboard"), purge_step=step + 1) if config.tensorboard else None
        self.console = Console(stderr=True, markup=False, emoji=False)  # names are printed as they are
        self.bar = Progress(
            TextColumn("[bold]train"),
            BarColumn(bar_width=10),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            console=self.console,
            disable=not (config.progress and self.console.is_terminal),
        )
        self.task = self.bar.add_task("train", total=max_steps, completed=step, note="")

    def __enter__(self) -> RunLog:
        if self.active:
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.active:
            self.bar.stop()
            self.file.close()
            if self.board is not None:
                self.board.close()

    def advance(self, step: int) -> None:
        """Move the bar."""
        if self.active:
            self.bar.update(self.task, completed=step)

    def scalars(self, step: int, group: str, values: dict[str, float]) -> None:
        """Write one line {"step", "group", values…} (null for NaN), and one TensorBoard point per value.

        Shares, as PQ is, are 0-1 in the file, and in percent where people look.
        """
        if not self.active:
            return
        line = {k: float(f"{v:.6g}") if math.isfinite(v) else None for k, v in values.items()}
        self.file.write(json.dumps({"step": step, "group": group} | line) + "\n")
        if self.board is not None:
            for name, value in values.items():
                self.board.add_scalar(f"{group}/{name}", 100 * value if group == "val" else value, step)
        self.bar.update(self.task, note=one_line("", values))
        if self.bar.disable:
            self._print(one_line(f"step {step} " if group == "train" else f"step {step} {group} ", values))

    def pictures(self, step: int, pictures: dict[str, Tensor]) -> None:
        """Tensor[3, H, W] uint8 each, to TensorBoard."""
        if self.active and self.board is not None:
            for name, picture in pictures.items():
                self.board.add_image(f"pictures/{name}", picture, step)

    def message(self, step: int, text: str) -> None:
        """A sentence, in the log and on the screen."""
        if self.active:
            self.file.write(json.dumps({"step": step, "group": "message", "text": text}) + "\n")
            self._print(text)

    def _print(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)


def read_log(path: str | Path) -> list[dict[str, Any]]:
    """Lines of a log.jsonl; one that a kill cut short is left out."""
    lines = []
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:
            continue
    return lines


def one_line(start: str, values: dict[str, float]) -> str:
    """What matters of a line of the log, for people, in at most 80 columns.

    Of an update: the loss, the rate, the speed, and the terms of the loss as far as they fit, each summed over
    stages and iterations ("box" holds "cls", too); of an evaluation: PQ, SQ and RQ in percent.
    """
    if "loss" not in values:
        return start + " ".join(f"{k} {100 * v:.1f}" for k, v in values.items() if k in {"PQ", "SQ", "RQ"})
    terms: dict[str, float] = {}
    for name, value in values.items():
        if name.startswith("loss_"):
            kind = name.split("_")[1].replace("cls", "box")
            terms[kind] = terms.get(kind, 0.0) + value
    line = f"{start}loss {values['loss']:.4g} lr {values['lr']:.2g} {values['images_per_second']:.3g} img/s"
    for kind, value in terms.items():
        term = f" {kind} {value:.2g}"
        line += term if len(line) + len(term) <= WIDTH else ""
    return line


def _drop_after(path: Path, step: int, measured: bool) -> None:
    """Forget what was logged after the step that the run goes on from."""
    if path.is_file():
        kept = [
            line
            for line in read_log(path)
            if line["step"] < step or (line["step"] == step and (measured or line["group"] != "val"))
        ]
        write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
