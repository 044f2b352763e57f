"""Reading, checking, loading and writing of weight files, without executing code in them.

Files are untrusted: a file may claim sizes that it does not have, hold values that are not finite, or contain
code. All of the package reads weights by `read_weights` and loads them into modules by `fit_weights`.
"""

from __future__ import annotations

import hashlib
import re
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from refine.errors import RefineError
from refine.files import write_bytes

Shapes = Mapping[str, Sequence[int]]

_ENTRIES = (
    *("model_ema", "ema", "ema_state_dict", "state_dict_ema", "ema_model"),
    *("state_dict", "model_state_dict", "model_state", "model", "module", "network", "net", "weights", "blobs"),
)
"""Keys under which training checkpoints hold a state dict, averaged (EMA) weights first."""
_PREFIXES = ("module.", "_orig_mod.", "model.")
"""Prefixes that DistributedDataParallel and AveragedModel, torch.compile, and Lightning add to every name."""
_ZERO_BY_DESIGN = re.compile(
    r".*\.offset\.weight|.*predictor\.weight|.*\.from_(semantic|f_sem|before)\.weight|.*\.num_batches_tracked"
)
"""Weights that start at zero, and stay so if only other parts are trained."""


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read the tensors of a .safetensors file or a PyTorch checkpoint (.pth) to the CPU.

    Args:
        path: weight file; a checkpoint may hold its state dict under a common key such as "state_dict" or
            "model"; averaged weights ("model_ema", …) take precedence.

    Returns:
        Tensors by name, with the dtypes of the file and memory of their own.

    Raises:
        RefineError: the file is missing or no weight file, a tensor is larger than its data, or a value is not
            finite.
    """
    path = Path(path)
    _require_file(path)
    if path.suffix == ".pkl":
        raise RefineError(f"{path}: convert pickled weights first: refine convert {path} -o FILE.safetensors")
    if path.suffix == ".safetensors":
        try:
            tensors = load_file(path)
        except Exception as error:  # safetensors raises many kinds of errors on a damaged file
            raise _damaged(path, error) from error
    else:
        tensors = _own_memory(find_state(_load_checkpoint(path), path), path)
    check_finite(tensors, path)
    return tensors


def read_shapes(path: str | Path) -> dict[str, tuple[int, ...]]:
    """Read the shapes of the tensors of a .safetensors file, by name, from its header alone."""
    _require_file(Path(path))
    try:
        with safe_open(path, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except Exception as error:
        raise _damaged(Path(path), error) from error


def _damaged(path: Path, error: Exception) -> RefineError:
    return RefineError(f"{path}: is damaged ({first_line(error)}); copy or export the model again")


def _require_file(path: Path) -> None:
    if not path.is_file():
        raise RefineError(f"{path}: no such file; check the path, or give a model folder")


def _load_checkpoint(path: Path) -> Any:
    """Load a .pth file; the zip format is memory-mapped, so that false sizes allocate nothing."""
    try:
        zipped = zipfile.is_zipfile(path)
        if zipped:
            with zipfile.ZipFile(path) as archive:
                if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                    raise ValueError("its entries are compressed, which torch.save never does")
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as error:  # torch.load raises many kinds of errors on a damaged file
        foreign = re.search(r"Unsupported (?:global: GLOBAL|class) (\S+)", str(error))
        if foreign:
            reason = f"it holds the Python object {foreign[1]}, not only tensors"
        elif isinstance(error, UnpicklingError):  # whose text advises to run the code in the file
            reason = "it is not a file of torch.save, or is damaged"
        else:
            reason = first_line(error)
        raise RefineError(
            f"{path}: cannot be read as weights ({reason}); save a state dict with torch.save, or give a "
            f".safetensors file"
        ) from error


def find_state(content: Any, path: str | Path) -> dict[str, Any]:
    """Return the state dict in the content of a checkpoint: tensors or NumPy arrays by name.

    Raises:
        RefineError: the content holds no state dict.
    """
    state = _state(content, depth=4) if isinstance(content, Mapping) else {}
    if not state:
        raise RefineError(
            f"{path}: holds no weights by name (a {type(content).__name__} without tensors); give a state dict"
        )
    if len(state) > 1:
        state.pop("n_averaged", None)  # the counter of AveragedModel has no prefix
    while prefix := next((p for p in _PREFIXES if all(name.startswith(p) for name in state)), None):
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def _state(content: Mapping[Any, Any], depth: int) -> dict[str, Any]:
    for entry in _ENTRIES if depth else ():
        inner = content.get(entry)
        if isinstance(inner, Mapping) and (state := _state(inner, depth - 1)):
            return state
    return {str(k): v for k, v in content.items() if isinstance(v, Tensor | np.ndarray)}


def _own_memory(state: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Copy the tensors of a file, after checking that the file holds as many bytes as they claim."""
    total, size = 0, path.stat().st_size
    for name, tensor in state.items():
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_complex() or tensor.is_meta:
            raise RefineError(
                f"{path}: {name} is a {tensor.layout} tensor of {tensor.dtype}; expected dense real numbers"
            )
        claimed, held = tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes()
        total += claimed
        if claimed > held or total > 4 * size:  # several names may share one tensor
            raise RefineError(
                f"{path}: {name} has the shape {tuple(tensor.shape)}, {claimed} bytes, of which the file holds "
                f"{min(held, size)}; save the weights again, contiguous"
            )
    return {name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in state.items()}


def check_finite(tensors: Mapping[str, Tensor], source: object) -> None:
    """Raise RefineError if a value is NaN or infinite.

    Args:
        tensors: tensors by name, of any dtype, on any device.
        source: file or image that the tensors belong to, for the message.
    """
    floats = {
        name: _widened(tensor).isfinite().all() for name, tensor in tensors.items() if tensor.is_floating_point()
    }
    finite = torch.stack(list(floats.values())).tolist() if floats else []  # one synchronization
    broken = [name for name, good in zip(floats, finite, strict=True) if not good]
    if broken:
        raise RefineError(
            f"{source}: {len(broken)} of {len(tensors)} tensors hold NaN or infinite values, first {broken[0]}; "
            f"the weights are damaged or training diverged, use an earlier or a fresh copy"
        )


def _widened(tensor: Tensor) -> Tensor:
    """Convert eight-bit floats to float32: few PyTorch functions support them."""
    return tensor.float() if tensor.element_size() == 1 else tensor


def fit_weights(
    module: nn.Module, state: Mapping[str, Tensor], source: object, optional: Iterable[str] = ()
) -> None:
    """Load a state dict into a module after checking names, shapes and dtypes; on an error the module is unchanged.

    Args:
        module: module to fill in place; keeps its dtypes and memory layout.
        state: tensors by name. BatchNorm's counter `num_batches_tracked`, which does not affect results, may be
            missing or unexpected.
        source: file that the tensors come from, for messages.
        optional: substrings of names; for each, the tensors whose names contain it may be missing together.

    Raises:
        RefineError: tensors are missing, unexpected or of another shape (names the first ones), a tensor holds
            integers where the module has floats, a value is not finite, or a weight is all zero.
    """
    own = module.state_dict()
    check_shapes(
        {name: value.shape for name, value in own.items()},
        {name: value.shape for name, value in state.items()},
        source,
        optional,
    )
    state = {name: value for name, value in state.items() if name in own}
    check_kinds(state, own, source)
    module.load_state_dict(state, strict=False)


def check_kinds(state: Mapping[str, Tensor], own: Mapping[str, Tensor], source: object) -> None:
    """Raise RefineError if a tensor has the wrong kind of dtype, is not finite, or is all zero.

    Args:
        state: tensors by name; every name is in `own`.
        own: state dict of the module.
        source: file that `state` comes from, for messages.
    """
    for name, value in state.items():
        if value.is_floating_point() != own[name].is_floating_point():
            raise RefineError(f"{source}: {name} is {value.dtype}, expected {own[name].dtype}; export it as floats")
    check_finite(state, source)
    for name, value in state.items():
        if value.ndim > 1 and not _ZERO_BY_DESIGN.fullmatch(name) and value.numel() and not _widened(value).any():
            raise RefineError(
                f"{source}: {name} {tuple(value.shape)} is all zero; the file is damaged, copy it again"
            )


def check_shapes(own: Shapes, given: Shapes, source: object, optional: Iterable[str] = ()) -> None:
    """Raise RefineError unless two sets of names and shapes are equal; for the arguments see `fit_weights`."""
    own, given = ({k: tuple(v) for k, v in shapes.items() if not _counter(k)} for shapes in (own, given))
    absent = [part for part in optional if not any(part in name for name in given)]
    differences = {
        "missing": [
            f"{k} {shape}" for k, shape in own.items() if k not in given and not any(part in k for part in absent)
        ],
        "unexpected": [f"{k} {shape}" for k, shape in given.items() if k not in own],
        "of another shape": [f"{k} {given[k]}, expected {own[k]}" for k in own if given.get(k, own[k]) != own[k]],
    }
    problems = [
        f"{len(names)} {kind}: {', '.join(names[:3])}{' …' if len(names) > 3 else ''}"
        for kind, names in differences.items()
        if names
    ]
    if problems:
        raise RefineError(
            f"{source}: does not fit the model ({'; '.join(problems)}); choose weights and a config of the same "
            f"architecture"
        )


def _counter(name: str) -> bool:
    return name.endswith("num_batches_tracked")


def load_weights(module: nn.Module, path: str | Path) -> None:
    """Load a weight file into a module; see `read_weights` and `fit_weights`."""
    fit_weights(module, read_weights(path), path)


def write_weights(path: Path, weights: Mapping[str, Tensor], half: bool = False) -> None:
    """Write a state dict as safetensors; `half` stores floats as float16.

    Raises:
        RefineError: the file cannot be written, or a value is too large for float16.
    """
    tensors = {
        name: (t.half() if half and t.is_floating_point() else t).detach().cpu().contiguous().clone()
        for name, t in weights.items()
    }
    if half:
        check_finite(tensors, f"{path.name} as float16")
    write_bytes(path, save(tensors))


def digest(weights: Mapping[str, Tensor]) -> str:
    """Return a hexadecimal digest of tensors and their names."""
    content = hashlib.blake2b(digest_size=8)
    for name, tensor in weights.items():
        content.update(name.encode())
        content.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return content.hexdigest()


def first_line(error: Exception) -> str:
    """Return the first line of an exception's message, shortened; its class name if the message is empty."""
    return (str(error).splitlines() or [""])[0][:200] or type(error).__name__
