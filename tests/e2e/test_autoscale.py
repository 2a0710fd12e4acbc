"""`penstock up --autoscale` as a user runs it: real workers come under load and go after it, and no request fails on the way."""

import asyncio
import json
import re
import time
from pathlib import Path

import httpx
from penstock_dataplane.loop import run

from tests.cli.test_up import Up, cli, started

WAIT_S = 120.0
# Targets that a busy machine meets, too: a size that misses them is not made smaller.
OPTIONS = ("--autoscale", "both=0..4", "--speed", "1", "--slo-ttft-ms", "10000", "--slo-itl-ms", "2000")
QUICK = (
    "period_s=1",
    "window_s=0.5",
    "sample_s=40",
    "stable_s=6",
    "trend_s=60",
    "budget_half_life_s=20",
    "replay_budget_s=0.3",
    "idle_s=6",
)


class Load:
    """Clients that ask `rate` times a second, each with a prompt of its own of some 8,000 tokens (0.16 s of a worker's time)."""

    def __init__(self, url: str) -> None:
        self.rate = 2.0
        self.ok = 0
        self.bad: list[str] = []
        self._url = url
        self._client = httpx.AsyncClient(timeout=WAIT_S, trust_env=False, limits=httpx.Limits(max_connections=512))
        self._under_way: set[asyncio.Task[None]] = set()
        self._asking = asyncio.create_task(self._ask_on())

    async def _ask_on(self) -> None:
        number = 0
        while True:
            number += 1
            task = asyncio.create_task(self._ask(number))
            self._under_way.add(task)
            task.add_done_callback(self._under_way.discard)
            await asyncio.sleep(1 / self.rate)

    async def _ask(self, number: int) -> None:
        text = f"{number} " + "the water falls and " * 2_400
        body = {"model": "sim", "stream": True, "max_tokens": 12, "messages": [{"role": "user", "content": text}]}
        headers = {"x-penstock-priority": "1"}  # not shed while the fleet is still too small
        ended = ""
        try:
            async with self._client.stream("POST", f"{self._url}/v1/chat/completions", json=body, headers=headers) as answer:
                lines = [line async for line in answer.aiter_lines() if line]
            ended = lines[-1]
        except httpx.HTTPError as error:
            ended = repr(error)
        if ended == "data: [DONE]":
            self.ok += 1
        else:
            self.bad.append(ended)

    async def replicas(self) -> int:
        """Endpoints that the router sees."""
        found = await self._client.get(f"{self._url}/readyz")
        return int(found.json()["models"]["sim"]["endpoints"])

    async def until(self, replicas: int, up: Up, *, more: float = 0.0) -> None:
        """Wait for that many, asking `more` often with every second."""
        deadline_s = time.monotonic() + WAIT_S
        while await self.replicas() != replicas:
            assert time.monotonic() < deadline_s, f"never {replicas}: {up.said()}"
            await asyncio.sleep(0.5)
            self.rate += more / 2

    async def pause(self) -> None:
        """Ask no more; what is under way goes on."""
        self._asking.cancel()
        await asyncio.wait({self._asking})
        await asyncio.gather(*self._under_way)
        self.ok, self.bad = 0, []

    async def ask_once(self) -> None:
        await self._ask(0)

    async def end(self) -> None:
        self._asking.cancel()
        await asyncio.wait(self._under_way | {self._asking}, timeout=WAIT_S)
        await self._client.aclose()


def test_replicas_follow_the_load_and_no_request_fails(tmp_path: Path) -> None:
    """1 → 4 under a growing load, back to 1 under a small one, to 0 without any, and a question wakes it; users can see why."""
    settings = [word for one in QUICK for word in ("--autoscale-set", one)]
    with started(tmp_path, *OPTIONS, *settings) as up:
        url = up.running().router_url

        async def story() -> Load:
            load = Load(url)
            assert await load.replicas() == 1
            await load.until(4, up, more=0.7)
            load.rate = 2.0
            await load.until(1, up)
            await load.end()
            return load

        async def morning() -> Load:
            load = Load(url)
            await load.pause()
            await load.until(0, up)
            await load.ask_once()
            await load.end()
            return load

        load = run(story())
        assert load.bad == []
        assert load.ok > 50
        load = run(morning())
        assert (load.bad, load.ok) == ([], 1)
        told = json.loads(cli("explain", "scaling", "--data", str(up.data.path), "--last", "100", "--json").stdout)["models"][0][
            "decisions"
        ]
        sizes = [one["decision"]["desired"]["both"] for one in reversed(told)]
        assert max(sizes) == 4
        assert 0 in sizes
        assert all(one["decision"]["message"] for one in told)
        assert told[0]["pools"][0]["start_s"] > 0.1, "measured, the profile says 60"
        assert "autoscaler, up: both 1 → " in up.said()
        metrics = httpx.get(re.search(r"Its metrics: (\S+)", up.said())[1], trust_env=False).text
        assert re.search(r'penstock_autoscaler_decisions_total\{model="sim",reason="up"\} [1-9]', metrics)
        assert float(re.search(r'penstock_autoscaler_requests_total\{model="sim"\} (\S+)', metrics)[1]) > 50
        assert 'penstock_autoscaler_start_phase_seconds{model="sim",phase="process",pool="both"}' in metrics
        status = json.loads(cli("status", "--data", str(up.data.path), "--json").stdout)["models"][0]
        assert status["scaling"]["decision"]["desired"].keys() == {"both"}
        assert "autoscaler" in cli("status", "--data", str(up.data.path)).stdout
        assert "both 4" in cli("explain", "scaling", "--data", str(up.data.path), "--last", "100").stdout
