"""A gang of two with a real Ray: a leading and a following `penstock worker` on two loopback addresses, as in two Pods."""

import json
import os
import random
import signal
import sys
import threading
import time

import httpx
import msgspec
import psutil
import pytest
from penstock_cli.child import Child
from penstock_worker.engines.sim import reference_text

pytest.importorskip("ray")
pytestmark = pytest.mark.ray

WAIT_S = 180
FLEET = "f" * 32
TOKEN = {"x-penstock-token": FLEET}


def until(what, found, timeout_s=WAIT_S):
    deadline_s = time.monotonic() + timeout_s
    while not (answer := found()):
        assert time.monotonic() < deadline_s, what() if callable(what) else what
        time.sleep(0.05)
    return answer


class Pod:
    """One process of the gang, with everything below it."""

    def __init__(self, folder, address, rank, leader):
        self.url, self.page = f"http://{address}:8000", f"http://{address}:8001"
        folder.mkdir(exist_ok=True)
        told = {"id": f"pod-{rank}", "model": "m", "pool": "decode", "engine_host": "ray", "gang_size": 2, "gang_rank": rank, "speed": 1}
        told |= {"gang_leader": f"{leader}:8001", "advertise_host": address, "host": address, "transfer_host": address, "port": 8000}
        (folder / "settings.json").write_text(json.dumps(told | {"drain_s": WAIT_S}))
        environ = {"PENSTOCK_FLEET_TOKEN": FLEET, "RAY_AUTH_TOKEN": "a" * 64}
        command = [sys.executable, "-m", "penstock_worker", "--config", str(folder / "settings.json")]
        self.child = Child(f"rank-{rank}", command, folder / "log", environ)
        self.seen = set()

    @property
    def ready(self):
        """What the kubelet's readiness probe would find."""
        try:
            return httpx.get(f"{self.page}/readyz").is_success
        except httpx.HTTPError:
            return False

    def below(self, name=""):
        """Pids of living processes below it whose title begins with `name`."""
        try:
            found = psutil.Process(self.child.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []
        self.seen |= {process.pid for process in found}
        return [process.pid for process in found if not name or (process.cmdline() or [""])[0].startswith(name)]

    def lose(self):
        """As when its node is gone: everything killed, nothing said."""
        for pid in [self.child.pid, *self.below()]:
            os.kill(pid, signal.SIGKILL)
        self.child.stop(0.0)

    def epoch(self):
        return httpx.get(f"{self.url}/penstock/state", headers=TOKEN).json()["epoch"]


class Gang:
    def __init__(self, folder):
        self.folder = folder
        net = f"127.{random.randrange(64, 128)}.{random.randrange(256)}"
        self.addresses = [f"{net}.1", f"{net}.2"]
        self.lost = []
        self.pods = [self.start(0), self.start(1)]

    def start(self, rank):
        return Pod(self.folder / f"pod-{rank}", self.addresses[rank], rank, self.addresses[0])

    def restart(self, rank):
        self.lost.append(self.pods[rank])
        self.pods[rank] = self.start(rank)

    def wait_ready(self):
        def ready():
            for rank, pod in enumerate(self.pods):
                if pod.child.ended() is not None:  # a kubelet starts a container again, too
                    self.restart(rank)
            return all(pod.ready for pod in self.pods)

        until(lambda: f"ready: {[pod.child.said() for pod in self.pods]}", ready)
        for pod in self.pods:
            pod.below()

    def end(self):
        for pod in self.pods:
            pod.below()
            pod.child.stop(20.0)
        left = set().union(*(pod.seen for pod in self.pods + self.lost))
        until(lambda: f"left: {[psutil.Process(pid).cmdline()[:5] for pid in left if lives(pid)]}", lambda: not any(map(lives, left)))


def lives(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def gang(tmp_path):
    made = Gang(tmp_path)
    try:
        made.wait_ready()
        yield made
    finally:
        made.end()


BODY = {"model": "m", "max_tokens": 1_000, "ignore_eos": True, "messages": [{"role": "user", "content": "tell me about penstocks"}]}


class Stream(threading.Thread):
    """A streamed answer read to its end; `text` and whether it ended as it should."""

    def __init__(self, url):
        super().__init__(daemon=True)
        self.begun = threading.Event()
        self.text, self.whole = "", False
        self._url = url
        self.start()

    def run(self):
        with httpx.stream("POST", f"{self._url}/v1/chat/completions", json={**BODY, "stream": True}, timeout=WAIT_S) as answer:
            for line in answer.iter_lines():
                if line == "data: [DONE]":
                    self.whole = True
                elif line.startswith("data: "):
                    choices = json.loads(line[6:])["choices"]
                    self.text += (choices[0]["delta"].get("content") or "") if choices else ""
                    self.begun.set()


def streaming(url):
    """A stream that has begun, slow enough to be running for a while yet."""
    stream = Stream(url)
    assert stream.begun.wait(WAIT_S)
    return stream


def test_a_gang_is_one_replica_whose_members_live_and_leave_together(gang):
    """Ready together; whichever member dies or is lost, the engine begins anew as a whole; told to leave, they drain together."""
    leader, follower = gang.pods
    answer = httpx.post(f"{leader.url}/v1/chat/completions", json=BODY, timeout=WAIT_S).json()
    assert answer["choices"][0]["message"]["content"] == reference_text(msgspec.json.encode(BODY))
    assert len(leader.below("ray::WorkerActor")) == 1 and len(follower.below("ray::RankActor")) == 1
    assert leader.below("ray::RankActor") == [] == follower.below("ray::WorkerActor")
    epochs = {leader.epoch()}

    os.kill(follower.below("ray::RankActor")[0], signal.SIGKILL)
    until("the leader is not ready", lambda: not leader.ready)
    gang.wait_ready()
    epochs.add(leader.epoch())

    follower.lose()
    until("the leader is not ready", lambda: not leader.ready)
    gang.restart(1)
    gang.wait_ready()
    epochs.add(leader.epoch())

    leader.lose()
    until("the follower is not ready", lambda: not gang.pods[1].ready)
    gang.restart(0)
    gang.wait_ready()
    epochs.add(gang.pods[0].epoch())
    assert len(epochs) == 4

    leader, follower = gang.pods
    stream = streaming(leader.url)
    follower.child.tell_to_stop()
    until("the gang drains", lambda: httpx.get(f"{leader.url}/penstock/state", headers=TOKEN).json()["draining"])
    leader.child.tell_to_stop()  # its first signal, though it is leaving already
    told_s = time.monotonic()
    stream.join(WAIT_S)
    assert time.monotonic() - told_s > 4, "shorter than the 3 s after which Ray's own handler of SIGTERM would have aborted it"
    assert stream.whole and stream.text == reference_text(msgspec.json.encode(BODY))
    until("both have ended", lambda: all(pod.child.ended() is not None for pod in gang.pods))
    assert [pod.child.ended() for pod in gang.pods] == [0, 0]
