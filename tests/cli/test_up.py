"""`penstock up` as a user runs it: a process of its own, with real Redis, workers and router; and what is left of it afterwards."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest
from penstock_cli.child import descendants
from penstock_cli.data_folder import DataFolder, Running
from penstock_cli.redis_server import NoRedisServer, find_server

PENSTOCK = [sys.executable, "-m", "penstock_cli.main"]
WAIT_S = 90.0
PREFIX = "The water of the upper lake falls through the steel pipe and turns the runner of the turbine. " * 12


@pytest.fixture(autouse=True)
def _redis() -> None:
    try:
        find_server()
    except NoRedisServer as error:
        pytest.skip(str(error))


def wait_until(true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class Up:
    """A started `penstock up`."""

    def __init__(self, process: subprocess.Popen[bytes], data: DataFolder, output: Path) -> None:
        self.process = process
        self.data = data
        self.output = output

    def running(self) -> Running:
        wait_until(lambda: self.data.running() is not None or self.process.poll() is not None, f"never ready: {self.said()}")
        found = self.data.running()
        assert found is not None, self.said()
        return found

    def said(self) -> str:
        return self.output.read_text()

    def ends_with(self, status: int) -> None:
        assert self.process.wait(WAIT_S) == status, self.said()


@contextmanager
def started(folder: Path, *options: str) -> Iterator[Up]:
    output = folder / "output"
    data = DataFolder(folder / "data")
    command = [*PENSTOCK, "up", "--host", "process", "--speed", "20", "--port", "0", "--data", str(data.path), *options]
    with output.open("wb") as out:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True)
    try:
        yield Up(process, data, output)
    finally:
        left = [process.pid, *descendants(process.pid)]
        for pid in left:
            if lives(pid):
                os.kill(pid, signal.SIGKILL)
        process.wait()


def ask(url: str, question: str) -> tuple[str, str, dict[str, int]]:
    """One streamed question; gives the text, the placement and the prompt-token details of the usage."""
    body = {"model": "sim", "max_tokens": 12, "stream": True, "stream_options": {"include_usage": True}}
    body["messages"] = [{"role": "system", "content": PREFIX}, {"role": "user", "content": question}]
    text, details = "", {}
    with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, headers={"x-penstock-explain": "1"}, timeout=60) as answer:
        assert answer.status_code == 200, answer.read()
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                event = json.loads(line[6:])
                assert "error" not in event, event
                text += "".join(choice["delta"].get("content") or "" for choice in event["choices"])
                details = (event.get("usage") or {}).get("prompt_tokens_details") or details
        return text, answer.headers["x-penstock-placement"], details


def cli(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*PENSTOCK, *arguments], capture_output=True, text=True, timeout=60, check=False)


def test_a_question_goes_through_prefill_and_decode_and_ctrl_c_leaves_nothing(tmp_path: Path) -> None:
    """The whole of the first visit: ready, an answer over P/D, a prefix hit, status, explain, one Ctrl-C, no process left."""
    with started(tmp_path) as up:
        running = up.running()
        text, placement, details = ask(running.router_url, "What is a penstock?")
        assert text
        assert placement.startswith("prefill=prefill-0;decode=decode-"), placement
        _, _, details = ask(running.router_url, "What is a penstock, and what is a draft tube?")
        assert details["cached_tokens"] > 0

        status = json.loads(cli("status", "--data", str(up.data.path), "--json").stdout)
        assert sorted(endpoint["id"] for endpoint in status["models"][0]["endpoints"]) == ["decode-0", "decode-1", "prefill-0"]
        assert all(0 < endpoint["lease_s"] <= 5 for endpoint in status["models"][0]["endpoints"])
        shown = cli("status", "--data", str(up.data.path)).stdout
        assert "prefill-0" in shown
        assert "decode-1" in shown

        decisions = json.loads(cli("explain", "--data", str(up.data.path), "--json").stdout)["decisions"]
        assert [decision["outcome"] for decision in decisions] == ["ok", "ok"]
        assert decisions[0]["placement"]["hit_tokens"] > 0
        explained = cli("explain", decisions[0]["request_id"], "--data", str(up.data.path)).stdout
        assert decisions[0]["request_id"] in explained
        assert "cost" in explained
        assert "Profiles in force" in explained
        assert "polynomial-reference" in explained
        assert "predictions" in explained, "how far off they are"

        below = descendants(up.process.pid)
        assert len(below) >= 5, "Redis, router, three workers"
        up.process.send_signal(signal.SIGINT)
        up.ends_with(0)
        assert [pid for pid in below if lives(pid)] == []
        assert up.data.running() is None
        for secret in (up.data.admin_key(), up.data.fleet_token_path.read_text().strip(), up.data.chunk_secret_path.read_text().strip()):
            assert secret
            logs = [up.output, *up.data.path.rglob("*.log"), *up.data.path.rglob("*.json")]
            assert [path for path in logs if secret in path.read_text(errors="replace")] == []


def test_a_worker_and_the_router_that_are_killed_come_back_with_a_line_each(tmp_path: Path) -> None:
    """The fleet restarts the worker, `up` the router on the same port; both say so."""
    with started(tmp_path, "--prefill", "0", "--decode", "0", "--both", "1") as up:
        url = up.running().router_url
        children = {Path(f"/proc/{pid}/cmdline").read_bytes().decode(): pid for pid in descendants(up.process.pid)}
        worker, router = (next(pid for line, pid in children.items() if word in line) for word in ("penstock_worker", "\0router\0"))
        os.kill(worker, signal.SIGKILL)
        wait_until(lambda: "fleet: a worker ended" in up.said() and "fleet: start both-0" in up.said(), "no line on the worker's end")
        os.kill(router, signal.SIGKILL)
        wait_until(lambda: "router: ended with status -9; starting it again" in up.said(), "no line on the router's end")

        def answers() -> bool:
            try:
                return httpx.get(f"{url}/readyz", timeout=5).status_code == 200
            except httpx.HTTPError:
                return False

        wait_until(answers, "the router did not come back")
        assert ask(url, "Are you back?")[0]
        up.process.send_signal(signal.SIGTERM)
        up.ends_with(0)


def test_redis_that_is_killed_comes_back_with_a_line_and_the_workers_register_again(tmp_path: Path) -> None:
    """A router that starts after it finds every worker: without a new Redis it would find none, for ever."""
    with started(tmp_path) as up:
        url = up.running().router_url
        children = {Path(f"/proc/{pid}/cmdline").read_bytes().decode(): pid for pid in descendants(up.process.pid)}
        redis, router = (next(pid for line, pid in children.items() if word in line) for word in ("redis.sock", "\0router\0"))
        os.kill(redis, signal.SIGKILL)
        wait_until(lambda: "Redis: ended with status -9; starting it again" in up.said(), "no line on the end of Redis")
        assert ask(url, "Is anybody there?")[0]
        os.kill(router, signal.SIGKILL)

        def all_listed() -> bool:
            try:
                return httpx.get(f"{url}/readyz", timeout=5).json()["models"]["sim"]["endpoints"] == 3
            except (httpx.HTTPError, KeyError):
                return False

        wait_until(all_listed, "the workers did not register with the new Redis")
        assert ask(url, "And now?")[0]


def test_kill_9_leaves_no_process_behind(tmp_path: Path) -> None:
    """The kernel ends the children: Redis, workers and router."""
    with started(tmp_path, "--decode", "1") as up:
        up.running()
        below = descendants(up.process.pid)
        assert len(below) >= 4
        up.process.kill()
        wait_until(lambda: not any(lives(pid) for pid in below), "a child outlived `up`")


def test_a_second_ctrl_c_ends_everything_at_once(tmp_path: Path) -> None:
    """While the first one still drains a stream."""
    with started(tmp_path, "--prefill", "0", "--decode", "0", "--both", "1", "--speed", "0.1") as up:
        url = up.running().router_url
        body = {"model": "sim", "max_tokens": 4000, "stream": True, "messages": [{"role": "user", "content": "Go on."}]}
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=60) as answer:
            assert next(answer.iter_raw())
            below = descendants(up.process.pid)
            up.process.send_signal(signal.SIGINT)
            wait_until(lambda: "Stopping" in up.said(), "no word on stopping")
            up.process.send_signal(signal.SIGINT)
            up.ends_with(130)
        wait_until(lambda: not any(lives(pid) for pid in below), "a process outlived the second Ctrl-C")  # killed, perhaps not dead yet


def test_ctrl_c_while_starting_leaves_nothing(tmp_path: Path) -> None:
    """Stopped in the middle of the first steps."""
    with started(tmp_path) as up:
        wait_until(lambda: len(descendants(up.process.pid)) >= 3, "nothing was started")
        below = descendants(up.process.pid)
        up.process.send_signal(signal.SIGINT)
        up.ends_with(130)
        assert [pid for pid in below if lives(pid)] == []


@pytest.mark.parametrize("moment", ["starting", "ready"])
def test_a_service_managers_end_of_the_whole_group_is_as_orderly(tmp_path: Path, moment: str) -> None:
    """SIGTERM to `up`, then to its process group, as `timeout` does it: twice told is not hurried."""
    with started(tmp_path) as up:
        if moment == "ready":
            up.running()
        wait_until(lambda: len(descendants(up.process.pid)) >= 3, "nothing was started")
        below = descendants(up.process.pid)
        up.process.send_signal(signal.SIGTERM)
        wait_until(lambda: "Stopping" in up.said(), "no word on stopping")
        os.killpg(up.process.pid, signal.SIGTERM)
        assert up.process.wait(WAIT_S) in ((0,) if moment == "ready" else (0, 130)), up.said()
        assert [pid for pid in below if lives(pid)] == []


@pytest.mark.ray
def test_a_signal_to_the_group_leaves_ray_to_be_ended_in_order(tmp_path: Path) -> None:
    """Ray's processes are in groups of their own; neither they nor Ray's folder are left."""
    with started(tmp_path, "--host", "ray") as up:
        wait_until(lambda: "✓ Ray" in up.said(), "Ray was not started")
        folder = next(re.search(r"/[^\0]*/penstock-ray-[^/\0]*", one) for one in _commands(up) if "gcs_server" in one)
        assert folder is not None
        assert Path(folder[0]).exists()
        os.killpg(up.process.pid, signal.SIGTERM)
        assert up.process.wait(WAIT_S) in (0, 130), up.said()
        assert "Failed to connect" not in up.said()
        assert not Path(folder[0]).exists()


def _commands(up: Up) -> list[str]:
    found = []
    for pid in descendants(up.process.pid):
        with suppress(OSError):
            found.append(Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace"))
    return found


def test_a_busy_port_is_named_before_anything_starts(tmp_path: Path) -> None:
    """Status 1, one line with the port and the option, no traceback, nothing running."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        said = cli("up", "--port", str(port), "--data", str(tmp_path / "data"))
    assert said.returncode == 1
    assert f"port {port}" in said.stderr
    assert "--port" in said.stderr
    assert "Traceback" not in said.stderr
    assert not (tmp_path / "data" / "redis").exists()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--profile", "no-such"], "polynomial-reference"),
        (["--model", "a{b}"], "without braces"),
        (["--prefill", "1", "--decode", "0"], "at least one worker that decodes"),
        (["--prefill", "0", "--decode", "2"], "at least one worker that prefills"),
        (["--policy", "no-such"], "policy is 'no-such'; allowed: target-misses"),
        (["--api-keys", "/no/such/file"], "cannot read /no/such/file"),
        (["--slo-share", "0.9", "--autoscaler-port", "1"], "--slo-share, --autoscaler-port: of no use without the autoscaler"),
        (["--autoscale-set", "period_s=5"], "--autoscale-set: of no use without the autoscaler; allowed: with --autoscale"),
        (["--redis", "nonsense"], "redis is 'nonsense'; allowed: redis://host:port/db"),
        (["--redis", "redis://127.0.0.1:1/0"], "--redis"),
    ],
)
def test_settings_that_cannot_work_are_refused_with_what_is_allowed(tmp_path: Path, options: list[str], named: str) -> None:
    """Before the data folder is touched; one line, no traceback."""
    said = cli("up", "--data", str(tmp_path / "data"), *options)
    assert said.returncode == 1
    assert named in said.stderr
    assert "Traceback" not in said.stderr
    assert not (tmp_path / "data").exists()


def test_the_redis_url_may_come_from_the_environment_and_its_password_is_not_shown(tmp_path: Path) -> None:
    """As README and configuration page say; a Redis that does not answer is named at once."""
    environ = {**os.environ, "PENSTOCK_REDIS_URL": "redis://:hush-hush@127.0.0.1:1/0"}
    command = [*PENSTOCK, "up", "--port", "0", "--data", str(tmp_path / "data")]
    said = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environ)
    assert said.returncode == 1
    assert "127.0.0.1:1" in said.stderr
    assert "does not answer" in said.stderr
    assert "hush" not in said.stderr + said.stdout
