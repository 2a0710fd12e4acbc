"""Real workers for Pods that no node runs: one `penstock worker` for each leading Pod that kwok calls ready, and clients for them.

On the API server's test bed Pods are objects only. Here stands beside each of them what its kubelet would run, told to end when the Pod
is deleted, so that routers, signals and drains are the real ones.
"""

import json
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import httpx
from control_plane import ControlPlane, Object, accepted
from penstock_cli.child import Child

CHAT = "/v1/chat/completions"
_POLL_S = 0.2
_END_S = 20.0


class WorkersBeside:
    """A context manager; a thread follows the Pods of one namespace. The workers are its children: they end with it."""

    def __init__(self, plane: ControlPlane, namespace: str, folder: Path, environ: dict[str, str], *settings: str) -> None:
        """`settings`: words of `penstock worker` beside the id."""
        self._pods = f"/api/v1/namespaces/{namespace}/pods"
        self._plane = plane
        self._folder = folder
        self._environ = environ
        self._settings = settings
        self._children: dict[str, Child] = {}
        self._ending: list[Child] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="workers beside")
        self.failures: list[str] = []

    def __enter__(self) -> "WorkersBeside":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._over.set()
        self._thread.join(60.0)

    def _follow(self) -> None:
        try:
            while not self._over.wait(_POLL_S):
                try:
                    self._look({pod["metadata"]["uid"]: pod for pod in accepted(self._plane.client.get(self._pods))["items"]})
                except (httpx.HTTPError, AssertionError) as error:
                    self.failures.append(str(error))
        finally:
            for child in (*self._children.values(), *self._ending):
                child.stop(_END_S)

    def _look(self, pods: dict[str, Object]) -> None:
        for uid, pod in pods.items():
            ready = any(one["type"] == "Ready" and one["status"] == "True" for one in pod.get("status", {}).get("conditions", ()))
            if ready and uid not in self._children and not pod["metadata"].get("deletionTimestamp"):
                command = [sys.executable, "-m", "penstock_cli.main", "worker", "--id", uid, "--port", "0", *self._settings]
                self._children[uid] = Child(f"worker {uid}", command, self._folder / f"{uid}.log", self._environ)
        for uid in list(self._children):
            if uid not in pods or pods[uid]["metadata"].get("deletionTimestamp"):
                child = self._children.pop(uid)
                child.tell_to_stop()
                self._ending.append(child)
            elif self._children[uid].ended() is not None:
                self.failures.append(f"worker {uid} ended by itself: {self._children[uid].said()}")


class Clients:
    """Sends streamed requests at a rate that the test changes, each from a thread of its own; notes how each ended."""

    def __init__(self, url: str, model: str, prompt: str, tokens: int) -> None:
        self.rate_per_s = 0.0
        self.ended: list[str] = []
        """Empty for a whole answer, else what was wrong."""
        self._url = url
        self._body = json.dumps(
            {"model": model, "stream": True, "max_tokens": tokens, "messages": [{"role": "user", "content": "NUMBER " + prompt}]}
        )
        self._over = threading.Event()
        self._sent = 0
        self._threads: list[threading.Thread] = []
        self._sender = threading.Thread(target=self._send, name="clients")

    def __enter__(self) -> "Clients":
        self._sender.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._over.set()
        self._sender.join(60.0)
        for thread in self._threads:
            thread.join(120.0)

    @property
    def failed(self) -> list[str]:
        return [said for said in self.ended if said]

    def ask(self) -> str:
        """One request; what was wrong with the answer, or nothing."""
        self._sent += 1
        body = self._body.replace("NUMBER", f"{self._sent:08d}")
        try:
            answer = httpx.post(
                f"{self._url}{CHAT}", content=body, headers={"content-type": "application/json"}, timeout=180, trust_env=False
            )
        except httpx.HTTPError as error:
            return f"{type(error).__name__}: {error}"
        whole = answer.status_code == 200 and answer.text.endswith("data: [DONE]\n\n") and "event: error" not in answer.text
        return "" if whole else f"{answer.status_code}: {answer.text[-300:]}"

    def _send(self) -> None:
        last_s = 0.0
        while not self._over.wait(0.02):
            if self.rate_per_s and time.monotonic() - last_s >= 1.0 / self.rate_per_s:
                last_s = time.monotonic()
                thread = threading.Thread(target=lambda: self.ended.append(self.ask()))
                thread.start()
                self._threads.append(thread)


def metric_of(url: str, name: str) -> Callable[[], float]:
    """Sum of a metric over its labels, asked anew at each call."""

    def read() -> float:
        lines = httpx.get(f"{url}/metrics", timeout=30, trust_env=False).text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith((f"{name}{{", f"{name} ")))

    return read


def wait_polling(what: Callable[[], str], true: Callable[[], bool], patience_s: float) -> None:
    """Poll until true; `what` is asked for only when it never was."""
    until_s = time.monotonic() + patience_s
    while not true():
        assert time.monotonic() < until_s, what()
        time.sleep(0.1)
