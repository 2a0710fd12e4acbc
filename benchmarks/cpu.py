"""CPU time of a process and its children, and which cores a benchmark uses for what.

Every router benchmark reads it before and after a window. Linux only: /proc/<pid>/stat counts user and system time in
ticks of 10 ms, so a window wants to hold at least a second of CPU.
"""

import os
from pathlib import Path

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


def descendants(pid: int) -> list[int]:
    """The process and everything below it, by parent process id."""
    parents: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents.setdefault(int(stat.read_text().rpartition(")")[2].split()[1]), []).append(int(stat.parent.name))
        except OSError:
            continue  # ended meanwhile
    found, look = [pid], [pid]
    while look:
        below = parents.get(look.pop(), [])
        found += below
        look += below
    return found


def cpu_s(pid: int) -> float:
    """User and system seconds of the process, its living descendants, and the ended children it has waited for."""
    total = 0.0
    for member in descendants(pid):
        try:
            fields = Path(f"/proc/{member}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        total += sum(int(field) for field in fields[11:15]) * _TICK_S
    return total


def resident_bytes(pid: int) -> int:
    """Resident memory of the process alone."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def cores() -> tuple[int, list[int]]:
    """The core that belongs to the router alone, and the others for mock workers and load generators."""
    allowed = sorted(os.sched_getaffinity(0))
    return allowed[-1], allowed[:-1] or allowed
