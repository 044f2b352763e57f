"""Where models are: one function turns every way to name a model into its folder. Nothing here imports torch."""

from __future__ import annotations

from pathlib import Path

from refine.errors import RefineError

SHIPPED = Path(__file__).resolve().parents[1] / "weights"
"""Folder of the models that come with the package, one folder each."""


def find_model(source: str | Path) -> Path:
    """Return the folder, with config.json and weights, of the model that a `--checkpoint` names.

    Args:
        source: name of a shipped model; or a folder with config.json and weights; or a run's folder, whose best
            checkpoint is taken, or its last if none was measured; or "hf://OWNER/NAME" for one on the Hugging
            Face Hub.

    Raises:
        RefineError: there is no such model, or it cannot be fetched.
    """
    if str(source).startswith("hf://"):
        return _from_hub(str(source).removeprefix("hf://"))
    for folder in (Path(source), SHIPPED / str(source)):
        if (folder / "config.json").is_file():
            return folder
        for pointer in (folder / "best", folder / "last"):
            if pointer.is_file():
                return folder / "checkpoints" / pointer.read_text(encoding="utf-8").strip()
    raise RefineError(
        f"{source}: no such model; give a folder with config.json, a run's folder, or one of the shipped "
        f"models ({', '.join(shipped_models()) or 'none installed'})"
    )


def shipped_models() -> list[str]:
    """Return the names of the models that come with the package."""
    return sorted(path.parent.name for path in SHIPPED.glob("*/config.json"))


def _from_hub(repository: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(snapshot_download(repository, allow_patterns=["config.json", "model.safetensors"]))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise RefineError(f"hf://{repository}: cannot be fetched ({error}); check the name and access") from error
