"""How many cores and how much memory this process may really use.

A library that counts the cores of the node would start far too many threads.
"""

import math
import os
from pathlib import Path

_QUOTA_FILE = Path("/sys/fs/cgroup/cpu.max")
_LIMIT_FILE = Path("/sys/fs/cgroup/memory.max")


def usable_cores(quota_file: Path = _QUOTA_FILE) -> int:
    """The cores of the Pod's CPU limit, else those that the process may run on; at least one."""
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = quota_file.read_text().split()
    except (OSError, ValueError):
        return cores
    return cores if quota == "max" else max(1, min(cores, math.ceil(int(quota) / int(period))))


def usable_bytes(limit_file: Path = _LIMIT_FILE) -> int:
    """The memory of the Pod's limit, else that of the machine."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        limit = limit_file.read_text().strip()
    except OSError:
        return memory
    return memory if limit == "max" else min(memory, int(limit))
