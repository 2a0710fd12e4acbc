"""`penstock doctor`: what is missing on this machine, and what to do about each thing.

Every check is a function that gives one Finding and starts nothing. It imports none of the things it looks for.
"""

import os
import platform
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import msgspec

from penstock_cli.data_folder import DataFolder
from penstock_cli.ports import PortBusy, require_free
from penstock_cli.redis_server import NoRedisServer, find_server

OK, ADVICE, MISSING = "ok", "advice", "missing"
PYTHONS = ((3, 11), (3, 14))
WANTED_NOFILE = 65_536
WANTED_DISK_BYTES = 1 << 30
WANTED_MEMORY_BYTES = 2 << 30


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One check's result: `ok`, `advice` (works, could be better) or `missing` (`penstock up` will not work)."""

    name: str
    state: str
    found: str
    todo: str = ""
    """What to do; empty for `ok`."""


def examine(data: DataFolder, port: int) -> list[Finding]:
    """All checks, in the order of `penstock up`."""
    checks: list[Callable[[], Finding]] = [
        python,
        redis,
        lambda: package("ray", "workers run as plain processes (--host process) without it; `make dev` installs it"),
        lambda: package("numba", "placement decisions run in plain Python, many times slower; `make dev` installs it"),
        lambda: package("uvloop", "the data plane runs on asyncio's own loop, about half as fast; `make dev` installs it"),
        lambda: free_port(data, port),
        open_files,
        lambda: folder(data),
        lambda: disk(data),
        memory,
    ]
    return [check() for check in checks]


def python() -> Finding:
    version = sys.version_info
    fits = PYTHONS[0] <= (version.major, version.minor) <= PYTHONS[1]
    return Finding(
        name="python",
        state=OK if fits else MISSING,
        found=f"{platform.python_version()} at {sys.executable}",
        todo="" if fits else "use Python 3.11 to 3.14: make PYTHON=python3.12 dev",
    )


def redis() -> Finding:
    try:
        server = find_server()
        said = subprocess.run([str(server), "--version"], capture_output=True, text=True, timeout=10, check=True).stdout
    except NoRedisServer as error:
        return Finding(name="redis", state=MISSING, found="none", todo=str(error))
    except (OSError, subprocess.SubprocessError) as error:
        return Finding(name="redis", state=MISSING, found=f"{server} does not run: {error}", todo="Debian: apt install redis-server")
    version = next((word.removeprefix("v=") for word in said.split() if word.startswith("v=")), "unknown version")
    if version.split(".")[0].isdecimal() and tuple(int(part) for part in version.split(".")[:2]) < (6, 2):
        return Finding(name="redis", state=MISSING, found=f"{version} at {server}", todo="6.2 or newer is needed")
    return Finding(name="redis", state=OK, found=f"{version} at {server}")


def package(name: str, todo: str) -> Finding:
    try:
        return Finding(name=name, state=OK, found=metadata.version(name))
    except metadata.PackageNotFoundError:
        return Finding(name=name, state=ADVICE, found="not installed", todo=todo)


def free_port(data: DataFolder, port: int) -> Finding:
    running = data.running()
    if running is not None and running.router_url.endswith(f":{port}"):
        return Finding(name="port", state=OK, found=f"{port}: our own router")
    try:
        require_free("127.0.0.1", port)
    except PortBusy as error:
        return Finding(name="port", state=MISSING, found=f"{port} is taken", todo=str(error))
    return Finding(name="port", state=OK, found=f"{port} is free")


def open_files() -> Finding:
    """The router raises its soft limit to the hard one by itself, so the hard one counts."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    found = "unlimited" if hard == resource.RLIM_INFINITY else str(hard)
    if hard == resource.RLIM_INFINITY or hard >= WANTED_NOFILE:
        return Finding(name="open files", state=OK, found=found)
    todo = f"each stream needs two; for thousands of clients raise the hard limit to {WANTED_NOFILE} (ulimit -Hn, LimitNOFILE=)"
    return Finding(name="open files", state=ADVICE, found=found, todo=todo)


def folder(data: DataFolder) -> Finding:
    nearest = _nearest(data.path)
    if not os.access(nearest, os.W_OK | os.X_OK) or not nearest.is_dir():
        return Finding(name="data folder", state=MISSING, found=f"{nearest} cannot be written", todo="choose another with --data")
    if data.admin_key_path.exists() and data.admin_key_path.stat().st_mode & 0o077:
        return Finding(name="data folder", state=ADVICE, found=f"{data.secrets_path} is readable by others", todo="chmod -R go= it")
    return Finding(name="data folder", state=OK, found=str(data.path))


def disk(data: DataFolder) -> Finding:
    free_bytes = shutil.disk_usage(_nearest(data.path)).free
    found = f"{free_bytes / (1 << 30):.1f} GiB free"
    if free_bytes >= WANTED_DISK_BYTES:
        return Finding(name="disk", state=OK, found=found)
    return Finding(name="disk", state=ADVICE, found=found, todo="Ray and the logs want 1 GiB; free some, or --data elsewhere")


def memory() -> Finding:
    total_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    found = f"{total_bytes / (1 << 30):.1f} GiB, {os.cpu_count()} cores"
    if total_bytes >= WANTED_MEMORY_BYTES:
        return Finding(name="memory", state=OK, found=found)
    return Finding(name="memory", state=ADVICE, found=found, todo="Ray alone takes 0.5 GiB; --host process needs less")


def _nearest(path: Path) -> Path:
    """The folder itself or its nearest existing parent."""
    path = path.resolve()
    while not path.exists():
        path = path.parent
    return path
