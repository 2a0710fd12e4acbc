"""Draining against a real worker process: its running stream ends, then it is drained; silence and wrong tokens are told apart."""

import asyncio
import os
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import httpx
import pytest
from control_plane import wait_until
from penstock_cli.child import Child
from penstock_operator.drain import Drainer
from penstock_operator.plan import DrainOrder

TOKEN = "f" * 32
KEY = ("team", "llama")


@pytest.fixture
def worker_url(tmp_path: Path) -> Iterator[str]:
    """A sim worker at normal speed."""
    announced = tmp_path / "url"
    command = [sys.executable, "-m", "penstock_cli.main", "worker", "--id", "w", "--speed", "1", "--set", f"announce_path={announced}"]
    child = Child("worker", command, tmp_path / "worker.log", environ={**os.environ, "PENSTOCK_FLEET_TOKEN": TOKEN})
    yield wait_until("the worker's URL", lambda: announced.exists() and announced.read_text().strip())
    child.stop(0.0)


async def until(found: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not found():  # noqa: ASYNC110 -- the drainer has no event for a report
            await asyncio.sleep(0.01)


async def chunks(url: str, tokens: int) -> AsyncIterator[str]:
    body = {"model": "sim", "stream": True, "max_tokens": tokens, "messages": [{"role": "user", "content": "hello"}]}
    async with httpx.AsyncClient(timeout=60) as client, client.stream("POST", f"{url}/v1/chat/completions", json=body) as response:
        async for line in response.aiter_lines():
            if line.startswith("data:"):
                yield line


def test_a_worker_drains_when_its_stream_has_ended(worker_url: str) -> None:
    """While the stream runs it reports one running and not drained; the stream comes whole; then it is drained, and that is told."""

    async def story() -> None:
        told: list[tuple[str, str]] = []
        drainer = Drainer(TOKEN, told.append, poll_s=0.02)
        stream = chunks(worker_url, 100)
        seen = [await anext(stream)]
        drainer.follow(KEY, [DrainOrder("uid-1", worker_url, 0.0)])
        await until(lambda: drainer.reports(KEY))
        report = drainer.reports(KEY)["uid-1"]
        assert report.running == 1 and not report.drained and not told
        seen += [line async for line in stream]
        assert seen[-1] == "data: [DONE]" and '"finish_reason":"' in seen[-2]
        await until(lambda: told)
        assert drainer.reports(KEY)["uid-1"].drained and told == [KEY]
        async with httpx.AsyncClient() as client:
            refused = await client.post(f"{worker_url}/v1/completions", json={"model": "sim", "prompt": "x"})
        assert refused.status_code == 503 and refused.headers["x-penstock-refuse"] == "draining"
        drainer.follow(KEY, [])
        assert not drainer.reports(KEY) and drainer.draining == 0
        await drainer.aclose()

    asyncio.run(story())


def test_a_worker_that_is_silent_or_does_not_know_us_gives_no_answer(worker_url: str) -> None:
    """Asked with the wrong token, or on a port where nobody listens: None, never a guess; with the right one, its load."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}"

    async def story() -> None:
        stranger, friend = Drainer("wrong", lambda _: None), Drainer(TOKEN, lambda _: None)
        assert await stranger.ask([("a", worker_url)]) == {"a": None}
        answers = await friend.ask([("a", worker_url), ("b", nobody)])
        assert answers["b"] is None
        assert answers["a"] is not None and answers["a"].running == 0 and not answers["a"].drained
        await stranger.aclose()
        await friend.aclose()

    asyncio.run(story())


def test_a_draining_worker_that_falls_silent_is_reported(worker_url: str) -> None:
    """After several calls without an answer the planner hears of it; the deadline is still the planner's."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}"

    async def story() -> None:
        told: list[tuple[str, str]] = []
        drainer = Drainer(TOKEN, told.append, poll_s=0.01)
        drainer.follow(KEY, [DrainOrder("uid-1", nobody, 0.0)])
        await until(lambda: told)
        assert drainer.reports(KEY)["uid-1"].unreachable
        await drainer.aclose()

    asyncio.run(story())
