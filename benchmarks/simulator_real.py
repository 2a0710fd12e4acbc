"""The simulator against the real thing: the same 500 requests through `penstock up` and through a replay.

`python -m benchmarks.simulator_real`. Real router, real `sim` workers in processes, wall clock, speed 1; prompts are tokenised here as the
workers do, so the replay shares exactly the blocks they share. Medians of TTFT and ITL are to be within 10 % while the
machine is less than 60 % busy; how busy it was is printed. What HTTP, tokenising and wake-ups take is measured on lone requests of several
lengths before, none of them among the 500, and given to the replay as the front end of its workers.
"""

import argparse
import asyncio
import json
import math
import statistics
import tempfile
import time
from pathlib import Path
from random import Random

import httpx
import msgspec
import numpy as np
import psutil
from penstock_core.slo import Slo
from penstock_simulator.cluster import replay
from penstock_simulator.report import Spread, summarise
from penstock_simulator.setup import FrontEnd, Setup, same_workers
from penstock_simulator.workload import BLOCK_TOKENS, Asked, Workload, assemble
from penstock_worker.engines.sim.request import parse
from penstock_worker.engines.sim.tokenizer import Tokenizer

from benchmarks.bodies import text
from benchmarks.pd import up
from benchmarks.table import Row, keep, show

REQUESTS = 500
WORKERS = 3
PATH = "/v1/chat/completions"
LONE_BYTES, LONE_TIMES, LONE_EVERY_S = (400, 2_000, 6_000, 12_000, 24_000), 6, 0.6
LEAD_S = 3.0
"""Seconds before the first arrival."""


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """Requests a second, how many system prompts there are and of what length, and the mean length of a question."""

    rate: float = 8.0
    prefixes: int = 12
    prefix_bytes: int = 4_096
    question_bytes: int = 6_000


USUAL = Shape()


class Sent(msgspec.Struct):
    """One request: when it is due and what came of it, in seconds from the start."""

    due_s: float
    body: bytes
    output_tokens: int
    arrivals_s: list[float]


def requests(seed: int, count: int, shape: Shape = USUAL) -> list[Sent]:
    """Poisson arrivals; one of the system prompts and a question of its own; answers of 20..100 tokens exactly."""
    rng = Random(seed)
    made, due_s = [], LEAD_S
    for index in range(count):
        due_s += rng.expovariate(shape.rate)
        output = rng.randint(20, 100)
        question = text(max(200, int(rng.lognormvariate(0.0, 0.6) * shape.question_bytes)), 1_000 + seed * count + index)
        messages = [
            {"role": "system", "content": text(shape.prefix_bytes, rng.randrange(shape.prefixes))},
            {"role": "user", "content": question},
        ]
        body = {"model": "sim", "messages": messages, "stream": True, "max_tokens": output, "min_tokens": output}
        made.append(Sent(due_s, json.dumps(body).encode(), output, []))
    return made


async def drive(url: str, sent: list[Sent]) -> float:
    """Send everything at its time, note when each content chunk comes; gives the share of the machine that was busy."""
    async with httpx.AsyncClient(base_url=url, timeout=120.0, trust_env=False, limits=httpx.Limits(max_connections=512)) as client:
        await client.get("/v1/models")
        psutil.cpu_percent()
        began = time.monotonic()
        await asyncio.gather(*(one(client, request, began) for request in sent))
        return psutil.cpu_percent() / 100.0


async def one(client: httpx.AsyncClient, request: Sent, began: float) -> None:
    await asyncio.sleep(max(0.0, began + request.due_s - time.monotonic()))
    async with client.stream("POST", PATH, content=request.body, headers={"content-type": "application/json"}) as answer:
        if answer.status_code != 200:
            raise RuntimeError(f"{answer.status_code}: {(await answer.aread())[:500]!r}")
        async for line in answer.aiter_lines():
            if line.startswith("data: {"):
                event = json.loads(line[6:])
                if any(choice["delta"].get("content") for choice in event["choices"]):
                    request.arrivals_s.append(time.monotonic() - began)


def as_workload(sent: list[Sent]) -> Workload:
    """The same requests with the block ids that the workers' tokeniser gives them."""
    tokenizer = Tokenizer()
    known: dict[tuple[int, bytes], int] = {}
    size = BLOCK_TOKENS * 4
    asked = []
    for request in sent:
        ids = bytes(parse(PATH, request.body).prompt.ids(tokenizer))
        parent, blocks = -1, []
        for at in range(len(ids) // size):
            parent = known.setdefault((parent, ids[at * size : at * size + size]), len(known))
            blocks.append(parent)
        asked.append(Asked(request.due_s, len(ids) // 4, request.output_tokens, blocks))
    return assemble("as sent", asked, len(known))


def lone(url: str) -> FrontEnd:
    """What a lone request takes beyond its prefill, as a constant and so much a token: the least-squares line over LONE lengths."""
    profile, tokens, beyond_s = same_workers(1)[0].profile, [], []
    sent = []
    for index, size in enumerate(length for length in LONE_BYTES for _ in range(LONE_TIMES)):
        messages = [{"role": "user", "content": text(size, 900_000 + index)}]
        body = {"model": "sim", "messages": messages, "stream": True, "max_tokens": 2, "min_tokens": 2}
        sent.append(Sent(LONE_EVERY_S * (index + 1), json.dumps(body).encode(), 2, []))
    asyncio.run(drive(url, sent))
    for one, count in zip(sent, as_workload(sent).prompt_tokens.tolist(), strict=True):
        tokens.append(count)
        beyond_s.append(one.arrivals_s[0] - one.due_s - profile.prefill_s(count))
    per_token_s, constant_s = np.polyfit(tokens, beyond_s, 1)
    return FrontEnd(constant_s=max(0.0, float(constant_s)), per_token_s=max(0.0, float(per_token_s)))


class Compared(msgspec.Struct, frozen=True):
    """One run: real samples in ms beside the simulated spread in seconds, by figure; the share of the machine that was busy."""

    pairs: dict[str, tuple[list[float], Spread]]
    busy_ratio: float
    front: FrontEnd
    hit_ratio: float


def run(seed: int, count: int) -> Compared:
    """A stack of its own: warmed, asked what lone requests take, then the requests of `seed`; and the same ones replayed."""
    sent = requests(seed, count)
    with tempfile.TemporaryDirectory(prefix="penstock-bench-") as folder:
        options = ("--prefill", "0", "--decode", "0", "--both", str(WORKERS))
        with up(Path(folder) / "data", *options) as url:
            asyncio.run(drive(url, requests(seed + 1_000, 30)))  # warms connections, code and tables
            front = lone(url)
            busy_ratio = asyncio.run(drive(url, sent))
    model = summarise(replay(as_workload(sent), Setup(workers=same_workers(WORKERS), slo=Slo(), front_end=front)))
    ttft_ms = [(one.arrivals_s[0] - one.due_s) * 1e3 for one in sent]
    gaps_ms = [(after - before) * 1e3 for one in sent for before, after in zip(one.arrivals_s, one.arrivals_s[1:], strict=False)]
    tpot_ms = [(one.arrivals_s[-1] - one.arrivals_s[0]) / (len(one.arrivals_s) - 1) * 1e3 for one in sent if len(one.arrivals_s) > 1]
    pairs = {"TTFT": (ttft_ms, model.ttft_s), "ITL": (gaps_ms, model.itl_s), "TPOT": (tpot_ms, model.tpot_s)}
    return Compared(pairs, busy_ratio, front, model.hit_ratio)


def row(name: str, found: list[Compared]) -> Row:
    """The real figure's distance from the simulated one at the median, in percent of it, run by run."""
    medians = [(statistics.median(real), (simulated.p50 or math.nan) * 1e3) for real, simulated in (one.pairs[name] for one in found)]
    note = "real and simulated, ms: " + "; ".join(f"{real:.2f}, {model:.2f}" for real, model in medians)
    return Row(f"median {name}, real against simulated", "%", tuple(abs(real / model - 1.0) * 100.0 for real, model in medians), 10.0, note)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3, help="each with requests and a stack of its own")
    parser.add_argument("--quick", action="store_true", help="one run of 150 requests")
    told = parser.parse_args()
    count = 150 if told.quick else REQUESTS
    found = [run(seed, count) for seed in range(1 if told.quick else told.runs)]
    fronts = "; ".join(f"{one.front.constant_s * 1e3:.1f} ms + {one.front.per_token_s * 1e6:.2f} µs a token" for one in found)
    hits = ", ".join(f"{one.hit_ratio:.0%}" for one in found)
    note = f"{count} requests, {USUAL.rate:g}/s, {WORKERS} workers, hits {hits} simulated; front end {fronts}"
    busy = Row("machine busy meanwhile", "%", tuple(one.busy_ratio * 100.0 for one in found), 60.0, note)
    rows = [*(row(name, found) for name in found[0].pairs), busy]
    show("Simulator against the real stack", rows)
    print(keep("simulator_real", rows))


if __name__ == "__main__":
    main()
