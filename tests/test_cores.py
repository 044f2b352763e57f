"""CPU threads and memory of a process: threads are limited to the cores that it may use."""

import ctypes
import math
import os
import platform
from pathlib import Path

import pytest
import torch

from refine.cores import available_cores, cgroup_quota
from refine.runtime import M_MMAP_THRESHOLD, prepare_cpu


def test_the_smallest_quota_of_all_parent_groups_applies(tmp_path: Path) -> None:
    own = tmp_path / "cgroup"
    root = tmp_path / "fs"
    (root / "job/step").mkdir(parents=True)
    own.write_text("0::/job/step\n")
    assert cgroup_quota(root, own) == math.inf
    (root / "job/step/cpu.max").write_text("max 100000\n")
    assert cgroup_quota(root, own) == math.inf
    (root / "job/cpu.max").write_text("250000 100000\n")
    assert cgroup_quota(root, own) == 2.5
    (root / "cpu.max").write_text("50000 100000\n")  # as in a container, which sees its own group as the root
    assert cgroup_quota(root, own) == 0.5


def test_cgroup_version_1(tmp_path: Path) -> None:
    own = tmp_path / "cgroup"
    own.write_text("5:memory:/a\n4:cpu,cpuacct:/job\n")
    folder = tmp_path / "fs/cpu,cpuacct/job"
    folder.mkdir(parents=True)
    (folder / "cpu.cfs_quota_us").write_text("-1\n")
    (folder / "cpu.cfs_period_us").write_text("100000\n")
    assert cgroup_quota(tmp_path / "fs", own) == math.inf
    (folder / "cpu.cfs_quota_us").write_text("300000\n")
    assert cgroup_quota(tmp_path / "fs", own) == 3
    assert cgroup_quota(tmp_path / "fs", tmp_path / "absent") == math.inf


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="Linux only")
def test_the_affinity_limits_the_cores() -> None:
    allowed = os.sched_getaffinity(0)
    assert 1 <= available_cores() <= len(allowed)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert available_cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)


def test_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    try:
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        monkeypatch.setattr("refine.runtime.available_cores", lambda: 2)
        prepare_cpu(None)
        assert torch.get_num_threads() == 2
        prepare_cpu(1)
        assert torch.get_num_threads() == 1
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        prepare_cpu(None)  # torch reads the variable at start
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc only")
def test_freed_memory_stays_with_the_process() -> None:
    if not ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 2**30):
        pytest.skip("this glibc has a maximum of 32 MiB")
    resource = pytest.importorskip("resource")
    prepare_cpu(torch.get_num_threads())
    faults = []
    for _ in range(10):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(2**24)  # 64 MiB, 16,384 pages of 4 KiB
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    assert faults[-1] < 1000, faults
