"""The folder that one `penstock up` owns: its secrets (readable by their owner only), its logs, and how to find it running.

`up` opens and locks it; `status`, `explain` and `doctor` read it. Nothing else writes there but the processes `up` starts.
It knows nothing of routers or workers.
"""

import fcntl
import os
import secrets
from pathlib import Path
from typing import IO

import msgspec
from penstock_core.errors import PenstockError

DEFAULT_DATA = Path(".penstock/data")
DATA_ENV = "PENSTOCK_DATA"

_SECRET_BYTES = 32
_CHUNK_SECRET_BYTES = 8


class DataFolderError(PenstockError):
    """The folder cannot be used; the message says why and what to do."""


class Running(msgspec.Struct, frozen=True, kw_only=True):
    """What `up` writes down once its router answers, for the other commands."""

    pid: int
    router_url: str
    redis_url: str
    model: str
    host: str
    """`ray` or `process`."""


class DataFolder:
    """Paths and secrets under one folder. It changes in `open` (folder, secrets, lock), `announce` and `close`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: IO[bytes] | None = None

    @property
    def secrets_path(self) -> Path:
        return self.path / "secrets"

    @property
    def chunk_secret_path(self) -> Path:
        """16 hex digits: the seed of the chunk keys."""
        return self.secrets_path / "chunk-secret"

    @property
    def fleet_token_path(self) -> Path:
        return self.secrets_path / "fleet-token"

    @property
    def admin_key_path(self) -> Path:
        return self.secrets_path / "admin-key"

    @property
    def running_path(self) -> Path:
        return self.path / "running.json"

    def log_path(self, process: str) -> Path:
        """Where a child process writes what it says."""
        return self.path / f"{process}.log"

    def open(self) -> None:
        """Make the folder and the secrets that are missing, and lock it. Raises DataFolderError when another `up` has it."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.secrets_path.mkdir(mode=0o700, exist_ok=True)
            self._take_lock()
            _make_secret(self.chunk_secret_path, _CHUNK_SECRET_BYTES)
            _make_secret(self.fleet_token_path, _SECRET_BYTES)
            _make_secret(self.admin_key_path, _SECRET_BYTES)
        except OSError as error:
            raise DataFolderError(
                f"data folder {str(self.path)!r} cannot be written: {error.strerror}; choose another with --data"
            ) from None

    def announce(self, running: Running) -> None:
        """Write down what runs, whole or not at all."""
        fresh = self.running_path.with_suffix(".new")
        fresh.write_bytes(msgspec.json.format(msgspec.json.encode(running), indent=2) + b"\n")
        fresh.replace(self.running_path)

    def running(self) -> Running | None:
        """What the last `up` here announced, if its process still lives."""
        try:
            found = msgspec.json.decode(self.running_path.read_bytes(), type=Running)
        except (OSError, msgspec.DecodeError):
            return None
        return found if Path(f"/proc/{found.pid}").exists() or not Path("/proc/self").exists() else None

    def admin_key(self) -> str | None:
        """The router's admin key; None where there is none to read."""
        try:
            return self.admin_key_path.read_text(encoding="ascii").strip() or None
        except OSError:
            return None

    def close(self) -> None:
        """Give the folder back; its secrets and logs stay."""
        if self._lock is not None:
            self.running_path.unlink(missing_ok=True)
            self._lock.close()
            self._lock = None

    def _take_lock(self) -> None:
        lock = (self.path / "lock").open("ab")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            running = self.running()
            who = f" (process {running.pid}, {running.router_url})" if running else ""
            raise DataFolderError(
                f"data folder {str(self.path)!r} is in use by another `penstock up`{who}; stop that one, or choose another with --data"
            ) from None
        self._lock = lock


def chosen(data: Path | None) -> DataFolder:
    """The folder named on the command line, else by $PENSTOCK_DATA, else `.penstock/data` under the current folder."""
    return DataFolder(data or Path(os.environ.get(DATA_ENV) or DEFAULT_DATA))


def _make_secret(path: Path, random_bytes: int) -> None:
    """Write hex digits with mode 0600 from the first byte on; an existing secret stays, and loses foreign read rights."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        path.chmod(0o600)
        return
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(secrets.token_hex(random_bytes) + "\n")
