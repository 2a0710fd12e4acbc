"""Logs as JSON, the limit of open files, and processes that end with their parent."""

import io
import json
import logging
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from penstock_process import logs
from penstock_process.system import SPARE_FILES, process_began_s, raise_open_files, use_large_pages


@pytest.fixture
def written():
    """What `configure` sends where; the root logger is as before afterwards."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    stream = io.StringIO()
    logs.configure("info", stream)
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    root.handlers[:] = handlers
    root.setLevel(level)


def test_a_record_is_one_json_object_with_its_facts(written):
    """Time, level, logger, message, the event's numbers, and an exception's text."""
    try:
        raise ValueError("why")
    except ValueError:
        logging.getLogger("penstock_router.x").exception("it %s", "broke", extra={"facts": {"request_id": "r", "odd": {1}}})
    (line,) = written()
    assert line["time"].endswith("Z") and len(line["time"]) == 24
    assert (line["level"], line["logger"], line["message"]) == ("error", "penstock_router.x", "it broke")
    assert line["request_id"] == "r" and line["odd"] == [1]
    assert "ValueError: why" in line["exception"]


def test_only_warnings_of_other_libraries_are_shown(written):
    """Ours from the level on; theirs when they are grave."""
    for name in ("penstock_kvindex.tail", "httpx"):
        logging.getLogger(name).debug("detail")
        logging.getLogger(name).info("news")
        logging.getLogger(name).warning("trouble")
    assert [(line["logger"], line["message"]) for line in written()] == [
        ("penstock_kvindex.tail", "news"),
        ("penstock_kvindex.tail", "trouble"),
        ("httpx", "trouble"),
    ]


def test_the_limit_of_open_files_is_raised_and_a_low_one_is_said(caplog):
    """Soft becomes hard; less than is wanted is a warning with both numbers."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        assert raise_open_files(1) == hard == resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        assert not caplog.records
        raise_open_files(hard)
        assert caplog.records[0].facts == {"limit": hard, "wanted": hard + SPARE_FILES}
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


PARENT = """
import os, subprocess, sys, time
from penstock_process.system import ends_with
by_preexec = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"], preexec_fn=ends_with(os.getpid()))
itself = "from penstock_process.system import *; end_with_parent(%d); print('up', flush=True); input()"
by_itself = subprocess.Popen([sys.executable, "-c", itself % os.getpid()], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
by_itself.stdout.readline()
print(by_preexec.pid, by_itself.pid, flush=True)
time.sleep(300)
"""


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the kernel's parent-death signal is Linux'")
def test_children_end_when_their_parent_is_killed():
    """Armed before exec or by the child itself: `kill -9` of the parent leaves neither."""
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        children = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(children) == 2 and not any(map(gone, children))
        os.kill(parent.pid, signal.SIGKILL)
    deadline = time.monotonic() + 30
    while not all(map(gone, children)):
        assert time.monotonic() < deadline
        time.sleep(0.01)


_FAULTS = """
import platform, resource
from penstock_process.system import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(50):
        blocks = [b"x" * 300_000 for _ in range(8)]
        del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

plain = faults()
print(platform.libc_ver()[0] == "glibc", keep_freed_memory(), plain, faults())
"""


def test_freed_memory_is_used_again_without_asking_the_kernel() -> None:
    """Buffers made and freed over and over cost page faults the first time only."""
    said = subprocess.run([sys.executable, "-c", _FAULTS], capture_output=True, text=True, check=True, timeout=60).stdout.split()
    glibc, kept = said[0] == "True", said[1] == "True"
    assert kept == glibc
    plain, after = int(said[2]), int(said[3])
    assert not kept or after < 2_000 < plain


def test_a_process_knows_when_it_began():
    """Before it could run a line of ours, by the system's own account."""
    assert process_began_s() == pytest.approx(psutil.Process().create_time(), abs=1.0)
    assert process_began_s() < time.time()


_LARGE = """
from pathlib import Path
from penstock_process.system import use_large_pages

def advised():
    return sum("hg" in line.split() for line in Path("/proc/self/smaps").read_text().splitlines() if line.startswith("VmFlags:"))

held = [bytes(400) for _ in range(100_000)]
before = advised()
print(use_large_pages() >= 8 << 20, before, advised(), held[-1] == bytes(400))
"""


def test_what_is_allocated_is_asked_for_in_large_pages() -> None:
    """The kernel notes the advice on the memory of small objects, where it knows such pages; what they hold stays as it was."""
    if not sys.platform.startswith("linux"):
        assert use_large_pages() == 0
        return
    said = subprocess.run([sys.executable, "-c", _LARGE], capture_output=True, text=True, check=True, timeout=60).stdout.split()
    known = Path("/sys/kernel/mm/transparent_hugepage").exists()
    assert said[0] == said[3] == "True"
    assert int(said[1]) == 0 and (int(said[2]) > 0) == known
