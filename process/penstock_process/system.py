"""What a process asks of the operating system: many open files, memory that stays, when it began, and to end when its parent ends."""

import ctypes
import logging
import os
import re
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_START_FIELD = 19  # of /proc/self/stat, behind the name
SPARE_FILES = 256
"""Descriptors for everything that is no connection."""

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
KEPT_BYTES = 64 << 20
"""Freed memory that the process keeps at most for its next requests."""
_MAPPED_BYTES = 4 << 20
"""Blocks from this size on still come from the kernel and go back to it at once."""

_MADV_HUGEPAGE, _MADV_COLLAPSE = 14, 25
_LARGE_PAGE_BYTES = 2 << 20
_OWN_MEMORY = re.compile(r"([0-9a-f]+)-([0-9a-f]+) rw-p 0+ 00:00 0 *(?:\[heap\])?\n")
"""A line of /proc/self/maps: begin and end of memory that is no file's and not shared."""

log = logging.getLogger(__name__)


def raise_open_files(connections: int) -> int:
    """RLIMIT_NOFILE up to its hard limit, and a warning where that is too low for `connections`. Gives the limit in force."""
    wanted = connections + SPARE_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
        except (ValueError, OSError):
            pass  # some systems refuse an unlimited soft limit; the old one stays
    if soft != resource.RLIM_INFINITY and soft < wanted:
        facts = {"limit": soft, "wanted": wanted}
        log.warning("the hard limit of open files is too low for the connections that are allowed", extra={"facts": facts})
    return soft


def keep_freed_memory() -> bool:
    """Have the C library keep freed memory instead of giving it back at once. False where it is not glibc.

    A body of 64 KB passes through some ten buffers; asking the kernel for each anew costs more than all else that is done to it.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if not sys.platform.startswith("linux") or mallopt is None:
        return False
    wanted = {_M_TRIM_THRESHOLD: KEPT_BYTES, _M_TOP_PAD: KEPT_BYTES // 4, _M_MMAP_THRESHOLD: _MAPPED_BYTES}
    return all(mallopt(option, size) for option, size in wanted.items())


def use_large_pages() -> int:
    """Have the kernel hold what is allocated now in pages of 2 MB where it can. Gives the bytes concerned; 0 where it is not Linux.

    A request touches small objects all over the heap, and with pages of 4 KB a processor forgets most of their addresses in between. The
    kernel obliges at once from Linux 6.1 on, before that by and by, and not at all where such pages are switched off.
    """
    madvise = getattr(ctypes.CDLL(None), "madvise", None)
    if not sys.platform.startswith("linux") or madvise is None:
        return 0
    concerned = 0
    for first, last in _OWN_MEMORY.findall(Path("/proc/self/maps").read_text()):
        begin, end = -(-int(first, 16) // _LARGE_PAGE_BYTES) * _LARGE_PAGE_BYTES, int(last, 16) // _LARGE_PAGE_BYTES * _LARGE_PAGE_BYTES
        if begin < end:
            concerned += end - begin
            for advice in (_MADV_HUGEPAGE, _MADV_COLLAPSE):  # advice only: what it answers changes nothing
                madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), advice)
    return concerned


def process_began_s() -> float:
    """When this process was started, in seconds since 1970; where the system does not say, now."""
    now_s = time.time()
    try:
        fields = Path("/proc/self/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
        after_boot_s = int(fields[_START_FIELD]) / os.sysconf("SC_CLK_TCK")
        return now_s - max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - after_boot_s)
    except (OSError, ValueError, IndexError, AttributeError):
        return now_s


def end_with_parent(parent_pid: int) -> None:
    """Have the kernel kill this process when its parent ends, so that nothing is left even after `kill -9`. Linux only.

    The kernel watches the parent's *thread* that started this process. Raises SystemExit when the parent has ended already.
    """
    if not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        raise SystemExit(f"the parent is {os.getppid()}, not {parent_pid}: it ended before this process was up")


def ends_with(parent_pid: int) -> Callable[[], None] | None:
    """`end_with_parent` for `subprocess`' preexec_fn: the C library is looked up before the fork, and no exception is raised."""
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None, use_errno=True).prctl

    def arm() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent_pid:  # died between fork and prctl
            os._exit(1)

    return arm
