"""The environment with a real vLLM for CPU: made once from engines.lock in the user's cache folder (6 GB), used by all checkouts.

`python -m engine_environment` makes it and prints its interpreter; the fixtures use it. `$PENSTOCK_TEST_ENGINE_PYTHON`, where set,
names an interpreter that has vLLM already. It knows nothing of how engines are run.
"""

import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

LOCK = Path(__file__).parent / "engines.lock"
PYTHON_ENV = "PENSTOCK_TEST_ENGINE_PYTHON"
CACHE_ENV = "PENSTOCK_TEST_ENGINES"
NEEDED_BYTES = 9_000_000_000
_SAID_EVERY_S = 10.0

Say = Callable[[str], None]


class NoEngine(Exception):
    """There is none here and none can be made; the message says why."""


def engine_python(say: Say) -> Path:
    """The interpreter of an environment that has vLLM, made now if need be. Raises NoEngine."""
    named = os.environ.get(PYTHON_ENV)
    if named:
        if not os.access(named, os.X_OK):
            raise NoEngine(f"{PYTHON_ENV} is {named!r}; allowed: a Python interpreter that has vLLM")
        return Path(named)
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise NoEngine(f"the locked vLLM for CPU is for Linux on x86-64, this is {platform.system()} on {platform.machine()}")
    folder = _folder()
    python = folder / "bin" / "python"
    if (folder / "ready").exists():
        return python
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "ready").exists():
            _make(folder, say)
    return python


def _folder() -> Path:
    root = os.environ.get(CACHE_ENV) or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "penstock" / "test-engines"
    key = hashlib.sha256(LOCK.read_bytes() + sys.version.encode()).hexdigest()[:16]
    return Path(root) / key


def _make(folder: Path, say: Say) -> None:
    free = shutil.disk_usage(folder.parent).free
    if free < NEEDED_BYTES:
        raise NoEngine(f"{folder.parent} has {free / 1e9:.1f} GB free; needed: {NEEDED_BYTES / 1e9:.0f} GB")
    for old in folder.parent.iterdir():  # environments of earlier locks; nobody comes back to them
        if old.is_dir():
            shutil.rmtree(old, ignore_errors=True)
    say(f"Making an environment with vLLM for CPU in {folder} (6 GB, a few minutes, once)")
    began_s = time.monotonic()
    _run([sys.executable, "-m", "venv", str(folder)], say)
    install = [str(folder / "bin" / "python"), "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-compile", "--no-deps"]
    _run([*install, "--only-binary", ":all:", "--require-hashes", "-r", str(LOCK)], say)
    (folder / "ready").touch()
    say(f"Made in {time.monotonic() - began_s:.0f} s")


def _run(command: list[str], say: Say) -> None:
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    began_s = said_s = time.monotonic()
    while True:
        try:
            output, _ = process.communicate(timeout=1.0)
            break
        except subprocess.TimeoutExpired:
            if time.monotonic() - said_s > _SAID_EVERY_S:
                said_s = time.monotonic()
                say(f"  {time.monotonic() - began_s:.0f} s")
        except BaseException:
            process.terminate()
            process.wait()
            raise
    if process.returncode:
        raise NoEngine(f"{' '.join(command[:4])} … ended with status {process.returncode}: {output[-2000:]}")


if __name__ == "__main__":
    try:
        print(engine_python(lambda line: print(line, flush=True)))
    except NoEngine as reason:
        raise SystemExit(str(reason)) from None
