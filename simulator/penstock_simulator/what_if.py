"""The autoscaler's question "how would this traffic fare at another size?", answered by a replay of a sample of it.

Implements the autoscaler's WhatIf; the CLI and the simulated loop hand it to the Scaler. A sample has sizes and hits but no content: every
request finds the hits it was measured to have on any worker, and shares nothing else. Fleets begin empty, so requests of the first part are
replayed and not counted.
"""

from collections.abc import Mapping, Sequence
from time import thread_time

import numpy as np
from penstock_autoscaler.observation import Pool
from penstock_autoscaler.ports import Answer
from penstock_autoscaler.sample import Sample
from penstock_core.endpoint import Role
from penstock_core.profile import DEFAULT_PROFILE
from penstock_core.slo import DEFAULT_SLO, Attainment, Slo

from penstock_simulator.cluster import replay
from penstock_simulator.report import request_tpot_s, request_ttft_s
from penstock_simulator.setup import Replay, Setup, WorkerSpec
from penstock_simulator.workload import BLOCK_TOKENS, Workload

WARM_RATIO, WARM_ANSWERS = 0.25, 2.0
"""Of the time, what at the start finds a fleet emptier than it is, and is not counted: a share of it, or so many answers' length."""
LEAST_ANSWERS = 4.0
"""A sample that is shorter than so many answers is replayed twice or more often."""
MOST_REQUESTS = 1_500


class _OutOfBudgetError(Exception):
    """The replay was given up."""


class Replayed:
    """State: none, but for how the routers place, which it is told once."""

    def __init__(self, policy: str = "target-misses", *, turn_order: bool = True) -> None:
        self._policy, self._turn_order = policy, turn_order

    def replay(self, sizes: Mapping[str, int], pools: Sequence[Pool], asked: Sample, slo: Slo, budget_s: float) -> Answer:
        """As WhatIf says."""
        workers = tuple(
            WorkerSpec(id=f"{pool.name}-{i}", role=pool.role, profile=pool.profile)
            for pool in pools
            for i in range(sizes.get(pool.name, 0))
        )
        roles = {spec.role for spec in workers}
        if not asked.requests or not (Role.BOTH in roles or {Role.PREFILL, Role.DECODE} <= roles):
            return Answer(None, 0.0)
        answer_s = _answer_s(asked, pools, slo)
        asked = _repeated(asked, LEAST_ANSWERS * answer_s)
        hits = tuple((asked.hit_tokens // BLOCK_TOKENS * BLOCK_TOKENS).tolist())
        setup = Setup(workers=workers, policy=self._policy, slo=slo, turn_order=self._turn_order, given_hit_tokens=hits)
        began_s = thread_time()
        until_s = began_s + budget_s

        def watch(_ended: int, _all: int) -> None:
            if thread_time() > until_s:
                raise _OutOfBudgetError

        try:
            found = _attainment(replay(_workload(asked), setup, watch), slo, WARM_ANSWERS * answer_s)
        except _OutOfBudgetError:
            found = None
        return Answer(found, thread_time() - began_s)


def warm_up() -> None:
    """Compile what replays need, up to half a minute the first time, so that no decision waits for it."""
    asked = Sample(
        arrival_s=np.arange(8, dtype=np.float64),
        prompt_tokens=np.full(8, 1_000),
        hit_tokens=np.full(8, 64),
        output_tokens=np.full(8, 10),
    )
    pools = [
        Pool(name=role.value, role=role, desired=1, min_replicas=1, max_replicas=1, profile=DEFAULT_PROFILE, start_s=1.0) for role in Role
    ]
    for fleet in ({"both": 1}, {"prefill": 1, "decode": 1}):
        Replayed().replay(fleet, pools, asked, DEFAULT_SLO, float("inf"))


def _workload(asked: Sample) -> Workload:
    """Requests whose blocks are all their own."""
    blocks = -(-(asked.prompt_tokens + asked.output_tokens) // BLOCK_TOKENS)
    offsets = np.append(0, np.cumsum(blocks))
    return Workload(
        name="sample",
        arrival_s=asked.arrival_s,
        prompt_tokens=asked.prompt_tokens,
        output_tokens=asked.output_tokens,
        chain=np.arange(offsets[-1], dtype=np.int32),
        offsets=offsets,
        distinct_blocks=int(offsets[-1]),
        follows=np.full(asked.requests, -1),
        gap_s=np.zeros(asked.requests),
    )


def _answer_s(asked: Sample, pools: Sequence[Pool], slo: Slo) -> float:
    """About how long an answer takes on a busy replica."""
    held = float((asked.prompt_tokens + asked.output_tokens).mean())
    steps = []
    for pool in pools:
        if pool.role.decodes:
            streams = max(1, min(pool.profile.max_streams, int(0.7 * pool.profile.kv_tokens / held)))
            steps.append(min(slo.itl_s, pool.profile.decode_s(streams, streams * held)))
    return float(asked.output_tokens.mean()) * max(steps, default=0.0)


def _repeated(asked: Sample, least_s: float) -> Sample:
    """The sample one time after the other until it is so long, or MOST_REQUESTS."""
    length_s = asked.length_s + asked.length_s / asked.requests
    times = int(max(1, min(-(-least_s // max(1e-9, length_s)), MOST_REQUESTS // asked.requests)))
    if times == 1:
        return asked
    return Sample(
        arrival_s=np.concatenate([asked.arrival_s + time * length_s for time in range(times)]),
        prompt_tokens=np.tile(asked.prompt_tokens, times),
        hit_tokens=np.tile(asked.hit_tokens, times),
        output_tokens=np.tile(asked.output_tokens, times),
    )


def _attainment(done: Replay, slo: Slo, warm_s: float) -> Attainment:
    """Of the requests after the first part; that is never more than half of the time."""
    last_s = float(done.arrival_s[-1])
    since = int(np.searchsorted(done.arrival_s, min(max(warm_s, WARM_RATIO * last_s), 0.5 * last_s)))
    ttft, tpot = request_ttft_s(done)[since:], request_tpot_s(done)[since:]
    ok = np.array([one == "ok" for one in done.outcomes[since:]], bool)
    ttft_met, itl_met = ok & (ttft <= slo.ttft_s), ok & (np.isnan(tpot) | (tpot <= slo.itl_s))
    return Attainment(len(ok), int(ttft_met.sum()), int(itl_met.sum()), int((ttft_met & itl_met).sum()))
