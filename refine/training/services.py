"""Logging of a run to Weights & Biases and MLflow.

Both are configured by their own environment variables, such as WANDB_PROJECT, WANDB_MODE=offline and
MLFLOW_TRACKING_URI; without them, W&B logs to the account of `wandb login`, and MLflow to OUT/mlflow.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from refine.errors import RefineError, missing_extra
from refine.files import write_text


class Service(Protocol):
    """Service that keeps the curves of runs."""

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Log values by name."""
        ...

    def close(self) -> None:
        """End the run."""
        ...


class _Wandb:
    def __init__(self, out: Path, config: dict[str, Any]) -> None:
        try:
            import wandb
        except ImportError as error:
            raise missing_extra("log.to wandb needs the package wandb", "wandb") from error
        try:
            # The name of the folder continues the curves of a resumed run.
            self._run = wandb.init(dir=str(out), name=out.name, id=_run_id(out), resume="allow", config=config)
        except Exception as error:  # its errors have no base class
            reason = str(error).split("\n")[0]
            raise RefineError(f"log.to wandb: {reason}; run `wandb login`, or set WANDB_MODE=offline") from error

    def scalars(self, step: int, values: dict[str, float]) -> None:
        self._run.log(values, step=step)

    def close(self) -> None:
        self._run.finish()


class _Mlflow:
    def __init__(self, out: Path, config: dict[str, Any]) -> None:
        try:
            from mlflow.exceptions import MlflowException
            from mlflow.tracking import MlflowClient
        except ImportError as error:
            raise missing_extra("log.to mlflow needs the package mlflow-skinny", "mlflow") from error
        try:
            place = os.environ.get("MLFLOW_TRACKING_URI")
            if not place:  # the databases that it prefers to files are not in mlflow-skinny
                os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
                place = (out / "mlflow").resolve().as_uri()
            self._client = MlflowClient(place)
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "refine")
            found = self._client.get_experiment_by_name(name)
            experiment = found.experiment_id if found else self._client.create_experiment(name)
            earlier = self._client.search_runs([experiment], f"tags.refine_run = '{_run_id(out)}'", max_results=1)
            run = earlier[0] if earlier else self._client.create_run(experiment, run_name=out.name)
            self._id = run.info.run_id
            if not earlier:
                self._client.set_tag(self._id, "refine_run", _run_id(out))
                for key, value in _flat(config).items():
                    self._client.log_param(self._id, key, value)
        except MlflowException as error:
            reason = str(error).split("\n")[0]
            raise RefineError(f"log.to mlflow: {reason}; check MLFLOW_TRACKING_URI") from error

    def scalars(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._client.log_metric(self._id, name, value, step=step)

    def close(self) -> None:
        self._client.set_terminated(self._id)


SERVICES: dict[str, Callable[[Path, dict[str, Any]], Service]] = {"wandb": _Wandb, "mlflow": _Mlflow}


def _run_id(out: Path) -> str:
    """Return the id of a run, which is stored in its folder so that a resumed run is continued."""
    path = out / "run_id"
    if not path.is_file():
        write_text(path, os.urandom(8).hex() + "\n")
    return path.read_text(encoding="utf-8").strip()


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Return the fields of a nested mapping by dotted names, as text of at most 500 characters."""
    values: dict[str, str] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        values |= _flat(value, f"{name}.") if isinstance(value, dict) else {name: str(value)[:500]}
    return values
