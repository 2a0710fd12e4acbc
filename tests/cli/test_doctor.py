"""`penstock doctor` finds what is missing and says what to do."""

import os
import socket
import stat
from pathlib import Path

import msgspec
import pytest
from penstock_cli.data_folder import DataFolder
from penstock_cli.doctor import ADVICE, MISSING, OK, Finding, examine, folder, free_port, package, redis
from penstock_cli.ports import PortBusy, require_free


def test_every_finding_that_is_not_ok_says_what_to_do(tmp_path: Path) -> None:
    """All ten checks report here, and each names its remedy exactly when there is something to remedy."""
    findings = examine(DataFolder(tmp_path / "data"), 0)
    assert len({finding.name for finding in findings}) == 10
    assert [finding for finding in findings if (finding.state == OK) != (finding.todo == "")] == []
    assert msgspec.json.decode(msgspec.json.encode(findings), type=list[Finding]) == findings
    assert not (tmp_path / "data").exists(), "doctor only looks"


def test_a_machine_without_redis_is_told_how_to_get_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing on the PATH and nothing fetched: the finding is `missing` and names make and apt."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PENSTOCK_REDIS_SERVER", raising=False)
    found = redis()
    assert found.state == MISSING
    assert "make dev" in found.todo
    assert "apt install" in found.todo


def test_a_redis_that_is_too_old_or_does_not_run_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The program is asked for its version, not only looked for."""
    server = tmp_path / "redis-server"
    monkeypatch.setenv("PENSTOCK_REDIS_SERVER", str(server))
    server.write_text("#!/bin/sh\necho 'Redis server v=5.0.14 sha=0 malloc=libc bits=64'\n")
    server.chmod(server.stat().st_mode | stat.S_IXUSR)
    assert (redis().state, redis().todo) == (MISSING, "6.2 or newer is needed")
    server.write_text("#!/bin/sh\nexit 3\n")
    assert redis().state == MISSING
    server.write_text("#!/bin/sh\necho 'Redis server v=7.4.1 sha=0 malloc=libc bits=64'\n")
    assert redis().state == OK


def test_a_package_that_is_absent_is_advice_not_a_failure() -> None:
    """Ray, numba and uvloop are optional."""
    assert package("no-such-package", "do without").state == ADVICE


def test_a_busy_port_is_named_with_its_holder_and_the_option(tmp_path: Path) -> None:
    """The message has the port, the process id that listens there, and --port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(PortBusy, match=rf"port {port} .*process {os.getpid()} .*--port"):
            require_free("127.0.0.1", port)
        assert free_port(DataFolder(tmp_path), port).state == MISSING
    require_free("127.0.0.1", port)
    assert free_port(DataFolder(tmp_path), port).state == OK


def test_secrets_that_others_can_read_are_reported(tmp_path: Path) -> None:
    """A copied data folder may have lost its modes."""
    data = DataFolder(tmp_path)
    data.open()
    assert folder(data).state == OK
    data.admin_key_path.chmod(0o644)
    assert folder(data).state == ADVICE
    data.close()
