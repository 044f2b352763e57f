"""Processes that are killed at a chosen operation."""

import os
import sys
from collections.abc import Callable


def run_until_killed(work: Callable[[], object], kill: Callable[[str, tuple], bool]) -> int:
    """Run `work` in a forked process that exits with 137 before the first audit event for which `kill` is true.

    Returns:
        The exit code: 0 if `work` ended, 137 if it was killed, 1 if it raised an exception.
    """
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            sys.addaudithook(lambda event, args: os._exit(137) if kill(event, args) else None)
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
