"""Number of CPU cores that this process may use. This module does not import torch."""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path  # importing it takes 4 ms

CPUS = "/sys/devices/system/cpu"
CGROUPS = "/sys/fs/cgroup"


def available_cores() -> int:
    """Return the number of physical cores that this process may use, limited by its cgroup's quota; at least 1.

    Logical processors of one core are counted once: they share its arithmetic units, so that threads on both wait
    for each other.
    """
    if not hasattr(os, "sched_getaffinity"):  # not on Linux
        return os.cpu_count() or 1
    allowed = os.sched_getaffinity(0)
    cores = {_read(f"{CPUS}/cpu{n}/topology/core_cpus_list") or str(n) for n in allowed}
    return max(1, math.floor(min(len(cores), cgroup_quota())))


def cgroup_quota(root: str | Path = CGROUPS, own: str | Path = "/proc/self/cgroup") -> float:
    """Return the CPU quota of this process in cores, from cgroups of version 2 or 1; infinity without a limit.

    Args:
        root: mount point of the cgroups.
        own: file that lists the cgroups of this process as HIERARCHY:CONTROLLERS:PATH.
    """
    quotas = [math.inf]
    for line in _read(own).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        folder, groups = f"{root}/{controllers}", path.strip("/").split("/")
        # The limit of a group applies to its subgroups.
        quotas += [_quota("/".join([folder, *groups[:n]])) for n in range(len(groups) + 1)]
    return min(quotas)


def _quota(folder: str) -> float:
    words = _read(f"{folder}/cpu.max").split() or [
        _read(f"{folder}/cpu.cfs_quota_us"),
        _read(f"{folder}/cpu.cfs_period_us"),
    ]
    if len(words) == 2 and all(word.isdecimal() for word in words) and int(words[1]):
        return int(words[0]) / int(words[1])
    return math.inf  # "max", -1, or no such file


def _read(path: str | Path) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read().strip()
    except OSError:
        return ""
