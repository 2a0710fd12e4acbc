"""CPU time of a process and its children, and which cores a benchmark uses for what.

Every router benchmark reads it before and after a window. Linux only: /proc/<pid>/stat counts user and system time in
ticks of 10 ms, so a window wants to hold at least a second of CPU.
"""

import os
from pathlib import Path
from typing import NamedTuple

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


class Cpu(NamedTuple):
    """Seconds on the processor; the kernel's share is mostly socket calls and waking other processes."""

    user_s: float
    kernel_s: float

    @property
    def total_s(self) -> float:
        return self.user_s + self.kernel_s

    def since(self, earlier: "Cpu") -> "Cpu":
        return Cpu(self.user_s - earlier.user_s, self.kernel_s - earlier.kernel_s)


def cpu_of(pid: int) -> Cpu:
    """The process, its living descendants, and the ended children it has waited for."""
    user_ticks = kernel_ticks = 0
    for member in descendants(pid):
        try:
            fields = Path(f"/proc/{member}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        user_ticks += int(fields[11]) + int(fields[13])
        kernel_ticks += int(fields[12]) + int(fields[14])
    return Cpu(user_ticks * _TICK_S, kernel_ticks * _TICK_S)


def resident_bytes(pid: int) -> int:
    """Resident memory of the process alone."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def cores() -> tuple[int, list[int]]:
    """The core that belongs to the router alone, and the one for mock workers and load generators.

    One core for all of these, though there may be more: spread over idle cores, every write of the router would have to wake
    one up, which on a virtual machine costs the writer more than the request itself (seen: 300 against 236 µs a request).
    """
    allowed = sorted(os.sched_getaffinity(0))
    return allowed[-1], allowed[-2:-1] or allowed
