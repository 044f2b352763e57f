"""Count of the operations that a GPU would run, measured on a CPU.

Inside `count_launches`, tensors report the device type "cuda" but stay on the CPU, so that the code for GPUs runs.
Tensors that are copied to the CPU or made there are known, and what is computed from them is not counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

WAITING = {
    "_local_scalar_dense",
    "_unique2",
    "bincount",
    "equal",
    "masked_select",
    "nms",
    "nonzero",
    "repeat_interleave",
    "unique_consecutive",
    "unique_dim",
}
"""Operations whose output has a size, or is a Python number, that depends on values."""

NOT_RUN = {"alias", "detach", "empty", "empty_like", "empty_strided", "lift_fresh", "new_empty", "_unsafe_view"}
"""Operations without a kernel that are not views by their schema."""

COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd
MOVING = {Tensor.cpu, Tensor.to, Tensor.cuda}
COPYING = {torch.tensor, torch.as_tensor, Tensor.new_tensor}
DEVICE_OF = Tensor.device.__get__  # type: ignore[attr-defined]


class _Device(str):
    """Device that is the CPU for PyTorch, which accepts names, and a GPU for code that asks for its type."""

    type = "cuda"
    index = None


GPU = _Device("cpu")


@dataclass
class Launches:
    """Numbers of operations by name.

    Attributes:
        kernels: operations that compute something; views and allocations do not count.
        waits: operations and copies that wait for the device.
    """

    kernels: Counter[str] = field(default_factory=Counter)
    waits: Counter[str] = field(default_factory=Counter)


@contextmanager
def count_launches() -> Iterator[Launches]:
    """Count the operations inside the context, in which tensors from outside lie on the device `GPU`."""
    launches, host, from_numpy = Launches(), _Host(), torch.from_numpy

    def on_cpu(array: np.ndarray) -> Tensor:
        host.add(tensor := from_numpy(array))
        return tensor

    # from_numpy is not passed to a TorchFunctionMode.
    with patch.object(torch, "from_numpy", on_cpu), _Devices(launches, host), _Operations(launches, host):
        yield launches


class _Host:
    """Tensors that lie on the CPU.

    Attributes:
        creates: whether a tensor that is made of no other lies on the CPU.
    """

    def __init__(self) -> None:
        self.creates = True
        self._storages: dict[int, Tensor] = {}  # the tensors are kept, so that no address is used again

    def add(self, value: Any) -> None:
        """Add a tensor, or the tensors of a result."""
        for tensor in tree_leaves(value):
            if isinstance(tensor, Tensor):
                self._storages[tensor.untyped_storage()._cdata] = tensor

    def __contains__(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage()._cdata in self._storages

    def runs(self, values: Any) -> bool:
        """Return whether an operation with these arguments runs on the CPU; scalars may lie elsewhere."""
        tensors = [value for value in tree_leaves(values) if isinstance(value, Tensor)]
        decisive = [tensor for tensor in tensors if tensor.ndim] or tensors
        return any(tensor in self for tensor in decisive) if tensors else self.creates


class _Devices(TorchFunctionMode):
    """Let tensors report their device, and count the copies from one to the other."""

    def __init__(self, launches: Launches, host: _Host) -> None:
        super().__init__()
        self.launches, self.host = launches, host

    def __torch_function__(
        self, func: Callable, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        options = kwargs or {}
        if func == DEVICE_OF:
            return torch.device("cpu") if args[0] in self.host else GPU
        given = [value for value in (*args, *options.values()) if isinstance(value, str | torch.device | Tensor)]
        if func in MOVING:
            waits = not options.get("non_blocking")
            return self._moved(func(*args, **options), args[0], func is Tensor.cpu, given[1:], waits)
        if func in (Tensor.numpy, Tensor.__array__) and args[0] not in self.host:
            raise TypeError("can't convert a tensor on a GPU to NumPy")
        waits = func is Tensor.tolist and args[0] not in self.host
        before, self.host.creates = self.host.creates, not any(isinstance(value, _Device) for value in given)
        try:
            result = func(*args, **options)
        finally:
            created, self.host.creates = self.host.creates, before
        if func is Tensor.new_tensor:
            created = args[0] in self.host
        if func in COPYING and created:
            self.host.add(result)
        if waits or (func in COPYING and not created):
            self.launches.waits[func.__name__] += 1
        return result

    def _moved(self, result: Tensor, source: Tensor, to_cpu: bool, where: Sequence[Any], waits: bool) -> Tensor:
        """Return the result of a conversion, copied if it lies elsewhere than the source."""
        for target in where:
            to_cpu = target in self.host if isinstance(target, Tensor) else not isinstance(target, _Device)
        if not where and not to_cpu:
            to_cpu = source in self.host
        if to_cpu != (source in self.host):
            self.launches.waits["to"] += waits
            with torch._C.DisableTorchFunction(), torch.utils._python_dispatch._disable_current_modes():
                result = result.clone()
        if to_cpu:
            self.host.add(result)
        return result


class _Operations(TorchDispatchMode):
    """Count the operations."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # PyTorch would import torch._dynamo, for seconds

    def __init__(self, launches: Launches, host: _Host) -> None:
        super().__init__()
        self.launches, self.host = launches, host

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        options, name = kwargs or {}, func.overloadpacket.__name__
        if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), COMPOSITE):
            with self:
                return func._op_dk(COMPOSITE, *args, **options)
        if self.host.runs((args, options)):
            result = func(*args, **options)
            self.host.add(result)
            return result
        if not func.is_view and name not in NOT_RUN:
            self.launches.kernels[name] += 1
        if (name in WAITING and not options.get("output_size")) or _has_mask(name, args):
            self.launches.waits[name] += 1
        return func(*args, **options)


def _has_mask(name: str, args: Sequence[Any]) -> bool:
    """Return whether an indexing operation has a boolean index; a scalar is filled in without its indices."""
    masked = name in ("index", "index_put", "index_put_") and any(
        isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) for index in args[1]
    )
    return masked and (name == "index" or args[2].numel() > 1)
