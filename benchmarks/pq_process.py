"""PQ from files by one tool, in a process that imports nothing else; see pq.py.

    python benchmarks/pq_process.py hotcoco val.json val pred.json pred

The last line has the wall and CPU seconds without imports, and PQ.
"""

import gc
import resource
import sys
import time


def main(name, gt, gt_dir, pred, pred_dir):
    if name == "refine":
        from refine.evaluation.panoptic_files import evaluate_files

        def run():
            return evaluate_files(gt, gt_dir, pred, pred_dir).pq
    else:
        if name == "hotcoco":
            from hotcoco.panoptic import pq_compute
        else:
            from panopticapi.evaluation import pq_compute

        def run():
            return pq_compute(gt, pred, gt_dir, pred_dir)["All"]["pq"]

    cpu, wall = cpu_seconds(), time.perf_counter()
    pq = float(run())
    wall = time.perf_counter() - wall
    gc.collect()  # ends panopticapi's processes, so that their CPU time is counted
    print(f"\n{wall!r} {cpu_seconds() - cpu!r} {pq!r}")


def cpu_seconds():
    """Return the CPU time of this process and its finished child processes."""
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in usage)


if __name__ == "__main__":
    main(*sys.argv[1:])
