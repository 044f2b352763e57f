"""Logs of a run: lines of JSON, learning curves, TensorBoard, and a progress bar."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from refine.drawing.curves import draw_curves, to_png
from refine.errors import RefineError
from refine.files import append_bytes, write_bytes, write_error, write_text
from refine.training.config import LogConfig
from refine.training.services import SERVICES, Service

WIDTH = 80
"""Maximum length of a line on the terminal."""


class RunLog:
    """Context manager that writes OUT/log.jsonl and OUT/tensorboard, logs to services and shows a progress bar.

    At the end of a run that did not fail it draws OUT/curves.png.

    Args:
        out: folder of the run.
        config: settings of the log.
        step: number of completed updates; later lines of an interrupted run are removed.
        max_steps: total number of updates.
        active: whether to log at all; true in the first process only.
        measured: whether to keep the evaluation at `step`; otherwise its lines are removed too.
        settings: config of the whole run, for the services of `config.to`.

    Raises:
        RefineError: the folder cannot be written, or a service is not installed or cannot be reached.
    """

    def __init__(
        self,
        out: str | Path,
        config: LogConfig,
        step: int,
        max_steps: int,
        active: bool,
        measured: bool,
        settings: dict[str, Any],
    ) -> None:
        self.active = active
        if not active:
            return
        out = Path(out)
        self.path = out / "log.jsonl"
        try:
            out.mkdir(parents=True, exist_ok=True)
            _drop_after(self.path, step, measured)
            self.file = self.path.open("ab", buffering=0)
        except OSError as error:
            raise RefineError(f"{out}: cannot be written ({error.strerror}); choose another --out") from error
        self.board = SummaryWriter(str(out / "tensorboard"), purge_step=step + 1) if config.tensorboard else None
        self.services: list[Service] = [SERVICES[name](out, settings) for name in dict.fromkeys(config.to)]
        self.console = Console(stderr=True, markup=False, emoji=False)  # names may contain brackets and colons
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
            for service in self.services:
                service.close()
            if self.board is not None:
                with self._told_of():
                    self.board.close()
            if kind is None:
                write_bytes(self.path.with_name("curves.png"), to_png(draw_curves({"": [read_log(self.path)]})))

    def advance(self, step: int) -> None:
        """Advance the progress bar."""
        if self.active:
            self.bar.update(self.task, completed=step)

    def scalars(self, step: int, group: str, values: dict[str, float]) -> None:
        """Write one line {"step", "group", values…} (null for NaN), and one point per value to TensorBoard etc.

        Metrics such as PQ are 0-1 in the file, and percentages elsewhere and on the terminal.
        """
        if not self.active:
            return
        line = {k: float(f"{v:.6g}") if math.isfinite(v) else None for k, v in values.items()}
        self._write({"step": step, "group": group} | line)
        points = {f"{group}/{name}": 100 * v if group == "val" else v for name, v in values.items()}
        if self.board is not None:
            with self._told_of():
                for name, value in points.items():
                    self.board.add_scalar(name, value, step)
        for service in self.services:
            service.scalars(step, {name: value for name, value in points.items() if math.isfinite(value)})
        self.bar.update(self.task, note=one_line("", values))
        if self.bar.disable:
            self._print(one_line(f"step {step} " if group == "train" else f"step {step} {group} ", values))

    def images(self, step: int, images: dict[str, Tensor]) -> None:
        """Write images, each Tensor[3, H, W] uint8, to TensorBoard under their names."""
        if self.active and self.board is not None:
            with self._told_of():
                for name, image in images.items():
                    self.board.add_image(f"images/{name}", image, step)

    def message(self, step: int, text: str) -> None:
        """Write a message to the log and the terminal."""
        if self.active:
            self._write({"step": step, "group": "message", "text": text})
            self._print(text)

    def _write(self, line: dict[str, Any]) -> None:
        """Add a line, whole or not at all; raises WriteError."""
        try:
            append_bytes(self.file, (json.dumps(line) + "\n").encode())
        except OSError as error:
            raise write_error(self.path, error) from error

    @contextmanager
    def _told_of(self) -> Iterator[None]:
        """Raise WriteError for an OSError of TensorBoard, whose thread meets it some lines earlier."""
        try:
            yield
        except OSError as error:
            raise write_error(self.path.with_name("tensorboard"), error) from error

    def _print(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)


def read_log(path: str | Path) -> list[dict[str, Any]]:
    """Read the lines of a log.jsonl, without lines that were truncated by a crash."""
    lines = []
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:
            continue
    return lines


def one_line(start: str, values: dict[str, float]) -> str:
    """Summarise a line of the log for the terminal, in at most 80 characters.

    For an update: loss, learning rate, images per second, and as many loss terms as fit, each summed over stages
    and iterations ("box" includes "cls"). For an evaluation: PQ, SQ, RQ, and the PQ of things and of stuff, in
    percent.
    """
    if "loss" not in values:
        names = {"PQ": "PQ", "SQ": "SQ", "RQ": "RQ", "PQ_things": "things", "PQ_stuff": "stuff"}
        shown = {short: values[name] for name, short in names.items() if name in values}
        return start + " ".join(f"{name} {100 * value:.1f}" for name, value in shown.items())
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
    """Remove the lines after the step from which the run resumes."""
    if path.is_file():
        kept = [
            line
            for line in read_log(path)
            if line["step"] < step or (line["step"] == step and (measured or line["group"] != "val"))
        ]
        write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
