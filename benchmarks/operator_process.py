"""One operator process under measurement: its CPU time, memory, and its own figures; and what the API server counts.

`operator_scale` starts it on a test control plane. It judges nothing.
"""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec
from penstock_cli.child import Child

from benchmarks.cpu import cpu_of

_PATIENCE_S = 180.0
_QUIET_PATIENCE_S = 1_200.0
_POLL_S = 0.05


class OperatorUnderTest:
    """`penstock operator` as a process of its own."""

    def __init__(self, folder: Path, config: dict[str, Any], secrets: dict[str, str]) -> None:
        folder.mkdir(parents=True)
        self._url_file = folder / "url"
        file = folder / "settings.json"
        told = config | {"host": "127.0.0.1", "port": 0, "announce_path": str(self._url_file)}
        file.write_bytes(msgspec.json.encode(told))
        command = [sys.executable, "-m", "penstock_cli.main", "operator", "--config", str(file)]
        self.began = time.perf_counter()
        self.child = Child("operator", command, folder / "log", environ={**os.environ, **secrets})
        self._client = httpx.Client(timeout=60.0)
        self._url = ""

    def wait_listed(self) -> None:
        """Until it leads and has listed everything. Raises TimeoutError, ChildFailed."""
        self._until(self._url_file.exists)
        self._url = self._url_file.read_text().strip()
        self._until(lambda: (said := self._client.get(f"{self._url}/readyz")).is_success and bool(said.json()["leading"]))

    def wait_quiet(self, quiet_s: float = 1.0) -> float:
        """Until no key waits and none has been reconciled for `quiet_s`; gives the moment of the last reconcile."""
        last, since = -1.0, time.perf_counter()
        deadline = since + _QUIET_PATIENCE_S
        while time.perf_counter() < deadline:
            figures = self.figures()
            count = total(figures, "penstock_operator_reconcile_seconds_count")
            if count != last or total(figures, "penstock_operator_queue_depth") > 0:
                last, since = count, time.perf_counter()
            elif time.perf_counter() - since > quiet_s:
                return since
            time.sleep(_POLL_S)
        raise TimeoutError(f"the operator is still at work after {_QUIET_PATIENCE_S:g} s")

    def wait_figure(self, name: str, value: float) -> None:
        """Until a metric has this value. Raises TimeoutError, ChildFailed."""
        self._until(lambda: total(self.figures(), name) == value, f"{name} is not {value:g}")

    def figures(self) -> str:
        """Its metrics, as text."""
        return self._client.get(f"{self._url}/metrics").text

    def cpu_s(self) -> float:
        return cpu_of(self.child.pid).total_s

    def memory_mb(self) -> tuple[float, float]:
        """Resident megabytes now, and the most there ever were."""
        lines = dict(line.split(":", 1) for line in Path(f"/proc/{self.child.pid}/status").read_text().splitlines())
        return tuple(int(lines[name].split()[0]) * 1_024 / 1e6 for name in ("VmRSS", "VmHWM"))  # type: ignore[return-value]

    def log_lines(self, level: str) -> int:
        return self.child.log_path.read_text().count(f'"level":"{level}"')

    def close(self) -> None:
        self._client.close()
        self.child.stop(20.0)

    def kill(self) -> None:
        """As a node that fails would end it: the Lease is left behind."""
        os.kill(self.child.pid, signal.SIGKILL)
        self.close()

    def _until(self, found: Callable[[], bool], otherwise: str = "the operator does not lead") -> None:
        deadline = time.perf_counter() + _PATIENCE_S
        while True:
            if self.child.ended() is not None:
                raise self.child.failure()
            try:
                if found():
                    return
            except httpx.HTTPError:
                pass
            if time.perf_counter() > deadline:
                raise TimeoutError(f"{otherwise} after {_PATIENCE_S:g} s; its log: {self.child.said()}")
            time.sleep(_POLL_S)


@contextmanager
def operator(folder: Path, config: dict[str, Any], secrets: dict[str, str]) -> Iterator[OperatorUnderTest]:
    """Started, leading, everything listed; ended with the block."""
    process = OperatorUnderTest(folder, config, secrets)
    try:
        process.wait_listed()
        yield process
    finally:
        process.close()


def total(text: str, name: str, **labels: str) -> float:
    """Sum of a metric over the label sets that match, from Prometheus' text."""
    found = 0.0
    for line in text.splitlines():
        if line.startswith((f"{name}{{", f"{name} ")) and all(f'{label}="{value}"' in line for label, value in labels.items()):
            found += float(line.rpartition(" ")[2])
    return found


def applies(text: str) -> float:
    """Server-side applies that the API server has counted; in these runs nobody else makes any."""
    return total(text, "apiserver_request_total", verb="APPLY")


def deletes(text: str) -> float:
    return total(text, "apiserver_request_total", verb="DELETE")
