"""The embedded Redis server: found, started alone on its own socket, stopped, and ended by the kernel when we die."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from penstock_cli.redis_server import SERVER_ENV, UNPACKED, NoRedisServer, RedisServer, find_server


def test_a_named_server_that_does_not_exist_is_an_error_that_names_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong path in the environment is never silently replaced by another server."""
    monkeypatch.setenv(SERVER_ENV, "/does/not/exist")
    with pytest.raises(NoRedisServer, match=SERVER_ENV):
        find_server()


def test_the_unpacked_server_is_found_when_the_path_has_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without a server on the PATH the one that `make` unpacked is taken; without that the error says what to do."""
    monkeypatch.delenv(SERVER_ENV, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NoRedisServer, match="apt install redis-server"):
        find_server(tmp_path)
    unpacked = tmp_path / UNPACKED
    unpacked.parent.mkdir(parents=True)
    unpacked.write_text("#!/bin/sh\n")
    unpacked.chmod(0o755)
    assert find_server(tmp_path) == unpacked


def test_it_listens_on_its_socket_alone_and_stops_cleanly(tmp_path: Path) -> None:
    """No TCP port is opened, nobody else may use the socket, and after stop neither process nor socket is left."""
    server = RedisServer(tmp_path)
    with server:
        assert server.pid is not None
        process = psutil.Process(server.pid)
        assert [c for c in process.net_connections("inet") if c.status == psutil.CONN_LISTEN] == []
        assert server.socket_path.stat().st_mode & 0o077 == 0
    assert not process.is_running()
    assert not server.socket_path.exists()


def test_a_data_folder_with_a_long_path_still_gets_a_socket(tmp_path: Path) -> None:
    """Socket paths are limited to about 100 bytes; data folders are not."""
    with RedisServer(tmp_path / ("d" * 120)) as server:
        assert server.pid is not None


def test_a_program_that_is_no_server_gives_an_error_with_its_log(tmp_path: Path) -> None:
    """A program that exits at once is reported, with what it printed."""
    program = tmp_path / "not-redis"
    program.write_text("#!/bin/sh\necho I am no server\nexit 3\n")
    program.chmod(0o755)
    with pytest.raises(NoRedisServer, match="I am no server"):
        RedisServer(tmp_path / "data", program=program).start()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the kernel ends children of a killed parent on Linux only")
def test_no_server_is_left_when_its_parent_is_killed(tmp_path: Path) -> None:
    """SIGKILL of the starting process takes the server with it."""
    code = (
        "import sys, time, pathlib\n"
        "from penstock_cli.redis_server import RedisServer\n"
        "server = RedisServer(pathlib.Path(sys.argv[1])); server.start()\n"
        "print(server.pid, flush=True); time.sleep(600)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    server_pid = int(parent.stdout.readline())
    assert psutil.pid_exists(server_pid)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 30
    while psutil.pid_exists(server_pid) and psutil.Process(server_pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, "the server outlived its parent"
        time.sleep(0.01)
