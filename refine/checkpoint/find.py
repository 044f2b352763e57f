"""Resolution of a model name, path or address to its folder. This module does not import torch."""

from __future__ import annotations

import glob
import hashlib
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from refine.checkpoint.fetch import cache_folder, digest_of, fetch
from refine.checkpoint.public import PUBLIC, PublicModel, published_digest
from refine.errors import RefineError, did_you_mean
from refine.files import read_json, write_text

CONVERSION = 1
"""Version of the output of `refine convert`; increase it when the output changes, to renew cached models."""

ONNX = ".onnx"
"""Suffix of exported models."""

SHIPPED = Path(__file__).resolve().parents[1] / "weights"
"""Folder of the models included in the package, one subfolder each."""


def find_model(source: str | Path) -> Path:
    """Return the folder with config.json and weights of the model that `--checkpoint` specifies, or its ONNX file.

    Downloaded and converted weights are kept in `cache_folder`.

    Args:
        source: folder with config.json and weights, of refine or of transformers; run folder, of which the best
            checkpoint is used, or the last if none was evaluated; name of a shipped model, or of public weights
            (`PUBLIC`), which are downloaded at first use; weight file that `refine convert` supports (detectron2,
            torchvision), or its http(s) address; ONNX file of `refine export`; or "hf:OWNER/NAME" or
            "hf:OWNER/NAME@REVISION" for a model on the Hugging Face Hub.

    Raises:
        RefineError: the model does not exist, or cannot be downloaded or converted.
    """
    name = str(source)
    if name.startswith("hf:"):
        return _from_hub(name.removeprefix("hf:"))
    if name.startswith(("http://", "https://")):
        return _from_address(name)
    for folder in (Path(source), SHIPPED / name):
        if (folder / "config.json").is_file():
            return folder
        for pointer in (folder / "best", folder / "last"):
            if pointer.is_file():
                return folder / "checkpoints" / pointer.read_text(encoding="utf-8").strip()
    if name in PUBLIC:
        return _public(name, PUBLIC[name])
    if Path(source).is_file():
        path = Path(source)
        if path.suffix == ONNX:
            return path
        return _converted(path, f"{path.stem}-{digest_of(path)[:16]}")
    for old in Path(source).parent.glob(f".*.{glob.escape(Path(source).name)}.old"):
        raise RefineError(f"{source}: a killed process did not finish replacing it; rename {old} to {source}")
    similar = did_you_mean(name, [*shipped_models(), *PUBLIC])
    raise RefineError(
        f"{source}: no such model{similar}; give a folder with config.json, a run folder, a weight file, one of "
        f"the shipped models ({', '.join(shipped_models()) or 'none installed'}), or one that is downloaded "
        f"({', '.join(PUBLIC)})"
    )


def is_cached(name: str) -> bool:
    """Return whether the public weights of this name are already downloaded and converted."""
    try:
        return (_cached(f"{name}-{PUBLIC[name].digest}") / "config.json").is_file()
    except RefineError:  # there is no folder for weights
        return False


def _cached(name: str) -> Path:
    return cache_folder() / "models" / f"{name}-{CONVERSION}"


def _public(name: str, model: PublicModel) -> Path:
    folder = _cached(f"{name}-{model.digest}")
    if (folder / "config.json").is_file():
        return folder
    path = fetch(model.url, cache_folder() / "downloads" / model.file, model.digest, limit=2e6 * model.megabytes)
    _converted(path, f"{name}-{model.digest}")
    write_text(folder / "README.md", model.card())
    return folder


def _from_address(url: str) -> Path:
    file = Path(urlsplit(url).path).name or "weights"
    name = f"{Path(file).stem}-{hashlib.sha256(url.encode()).hexdigest()[:16]}"
    if (_cached(name) / "config.json").is_file():
        return _cached(name)
    return _converted(fetch(url, cache_folder() / "downloads" / name / file, published_digest(file)), name)


def _converted(path: Path, name: str) -> Path:
    """Return the model folder of an external weight file, which is converted at first use."""
    folder = _cached(name)
    if not (folder / "config.json").is_file():
        from refine.checkpoint.convert.convert import convert_file

        convert_file(path, folder)
    return folder


def licence_of(name: str) -> str:
    """Return the licence of the weights of a named model, or "unknown" for other weights."""
    if name in shipped_models():
        return "Apache-2.0"
    return PUBLIC[name].licence if name in PUBLIC else "unknown"


def shipped_models() -> list[str]:
    """Return the names of the models included in the package."""
    return sorted(path.parent.name for path in SHIPPED.glob("*/config.json"))


def is_of_transformers(folder: Path) -> bool:
    """Return whether a model folder was written by transformers, not by refine."""
    content: Any = read_json(folder / "config.json")
    return isinstance(content, dict) and "model_type" in content and "format" not in content


def _from_hub(name: str) -> Path:
    """Return the folder of a model in the cache of huggingface_hub, which downloads what is missing."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    repository, _, revision = name.partition("@")
    try:
        return Path(snapshot_download(repository, revision=revision or None, allow_patterns=_FILES))
    except HFValidationError as error:
        raise RefineError(f"hf:{name}: expected hf:OWNER/NAME or hf:OWNER/NAME@REVISION; correct it") from error
    except (HfHubHTTPError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise RefineError(
            f"hf:{name}: cannot be downloaded ({reason}); check the name, or run `hf download {repository} "
            f"--local-dir FOLDER` on a computer with a network, bring the folder, and give its path"
        ) from error


_FILES = ["*.json", "*.safetensors", "merges.txt", "README.md"]
"""Files of a model on the Hub that are downloaded: weights as safetensors, configs and tokenizers."""
