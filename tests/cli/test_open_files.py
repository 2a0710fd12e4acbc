"""A router on a machine that allows few open files: silent clients cannot take the descriptors that requests need."""

import json
import resource
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from penstock_cli.router import fitted
from penstock_router.config import RouterConfig

FILES = 400
WAIT_S = 60.0


class Server(BaseHTTPRequestHandler):
    """A plain OpenAI-compatible server with one model."""

    def do_GET(self) -> None:
        self._answer({"object": "list", "data": [{"id": "m", "object": "model"}]})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        self._answer({"id": "c", "object": "chat.completion", "choices": [], "usage": usage})

    def _answer(self, body: object) -> None:
        written = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(written)))
        self.end_headers()
        self.wfile.write(written)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 -- the base class' name
        """Nothing: the test reads the client's side."""


@contextmanager
def router_with_few_files(folder: Path, endpoint: str) -> Iterator[int]:
    """A router of its own process that may open FILES files; gives its port."""
    url_file = folder / "url"
    command = [sys.executable, "-m", "penstock_cli.main", "router", "--port", "0", "--endpoint", endpoint, "--url-file", str(url_file)]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            command,
            stdout=log,
            stderr=log,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (FILES, FILES)),  # noqa: PLW1509 -- one system call
        )
    try:
        deadline = time.monotonic() + WAIT_S
        while not url_file.exists():
            assert process.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.02)
        yield int(url_file.read_text().strip().rpartition(":")[2])
    finally:
        process.terminate()
        process.wait(WAIT_S)


def ask(connection: HTTPConnection) -> int:
    body = {"model": "m", "messages": [{"role": "user", "content": "Still there?"}]}
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"content-type": "application/json"})
    answer = connection.getresponse()
    answer.read()
    return answer.status


def served(port: int) -> bool:
    """Whether a new client is answered; until room has been made for it, connections are cut or refused."""
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        try:
            if ask(HTTPConnection("127.0.0.1", port, timeout=WAIT_S)) == 200:
                return True
        except ConnectionError:
            pass
        time.sleep(0.05)
    return False


@pytest.mark.parametrize(
    ("limit", "connections", "active"), [(1024, 448, 256), (20_000, 11_517, 6_581), (1_000_000, 16_384, 8_192), (-1, 16_384, 8_192)]
)
def test_connections_and_requests_fit_into_the_open_files(limit: int, connections: int, active: int) -> None:
    """A third of what there is belongs to upstream connections; settings that fit are left alone."""
    found = fitted(RouterConfig(), limit)
    assert (found.connections, found.active_requests) == (connections, active)


def test_silent_clients_do_not_take_the_files_that_a_request_needs(tmp_path: Path) -> None:
    """More of them than there are files: who was there before is served, and who comes after takes the place of the longest silent."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    silent: list[socket.socket] = []
    try:
        with router_with_few_files(tmp_path, f"http://127.0.0.1:{server.server_address[1]}") as port:
            before = HTTPConnection("127.0.0.1", port, timeout=WAIT_S)
            before.connect()
            silent += [socket.create_connection(("127.0.0.1", port), timeout=WAIT_S) for _ in range(FILES + 100)]
            deadline = time.monotonic() + WAIT_S
            while (status := ask(before)) == 404:  # the router has not asked the server for its models yet
                assert time.monotonic() < deadline
            assert status == 200
            assert served(port)
    finally:
        for one in silent:
            one.close()
        server.shutdown()
        server.server_close()
