"""How many replicas a rate of requests asks for: the fluid bound first, then sizes near it in replays.

`scaler` calls it. The bound is arithmetic: seconds of prefill that arrive a second, streams that are open at once and the KV they hold,
each against what a replica has. It knows no queues, so a replay of the latest requests says how many more, or fewer, are right; where there
is no what-if, no time left for it, or too few requests, the bound stands, corrected by what replays said before.
"""

import math
from collections.abc import Mapping, Sequence

import msgspec
from penstock_core.endpoint import Role
from penstock_core.slo import Attainment, Slo

from penstock_autoscaler.memory import Memory, Tried
from penstock_autoscaler.observation import Observation, Pool
from penstock_autoscaler.ports import WhatIf
from penstock_autoscaler.sample import Sample
from penstock_autoscaler.search import Bounds, Found, Goal, fewest

BUSY_RATIO = 0.8
"""Share of a replica's time, or of its KV, that can be planned with: beyond it queues grow out of proportion."""
FULL_RATIO = 0.95
"""Beyond it queues grow without end, though a short replay may not show it."""
LEAST_REQUESTS = 40
"""Fewer are no sample."""
_RATE_STEP = 0.01
"""Rates nearer to one another than this share count as the same."""
_LEARN_RATIO = 0.3


class Mix(msgspec.Struct, frozen=True, kw_only=True):
    """What arrives, on average."""

    rate: float
    """Requests a second."""
    prompt_tokens: float
    hit_tokens: float
    output_tokens: float


def mix(asked: Sample, rate: float) -> Mix:
    """Of a sample, at that rate."""
    prompts, hits, outputs = (float(one.mean()) for one in (asked.prompt_tokens, asked.hit_tokens, asked.output_tokens))
    return Mix(rate=rate, prompt_tokens=prompts, hit_tokens=hits, output_tokens=outputs)


def fluid(asked: Mix, pools: Sequence[Pool], slo: Slo, busy_ratio: float = BUSY_RATIO) -> dict[str, float]:
    """Replicas by pool that the mix keeps busy for that share of their time, not rounded.

    Pools that do both take whole requests; where there are dedicated ones, prompts go to those that prefill, answers to those that decode.
    """
    needed = {}
    for pool in pools:
        prefill = _prefill(asked, pool) / busy_ratio if pool.role is not Role.DECODE else 0.0
        needed[pool.name] = prefill if pool.role is Role.PREFILL else max(prefill, _decode(asked, pool, slo, prefill, busy_ratio))
    return needed


def _prefill(asked: Mix, pool: Pool) -> float:
    seconds = pool.profile.prefill_s(round(asked.prompt_tokens - asked.hit_tokens), round(asked.hit_tokens))
    return asked.rate * seconds


def _decode(asked: Mix, pool: Pool, slo: Slo, prefill: float, busy_ratio: float) -> float:
    """Replicas whose streams keep the ITL target and whose KV holds them, beside `prefill` replicas' worth of prompts."""
    low, high = 0.0, 1.0
    while not _holds(asked, pool, slo, prefill, high, busy_ratio) and high < 4_096.0:
        low, high = high, high * 2.0
    for _ in range(12):
        middle = (low + high) / 2.0
        low, high = (low, middle) if _holds(asked, pool, slo, prefill, middle, busy_ratio) else (middle, high)
    return high


def _holds(asked: Mix, pool: Pool, slo: Slo, prefill: float, replicas: float, busy_ratio: float) -> bool:
    context = asked.prompt_tokens + asked.output_tokens / 2.0
    left = 1.0 - (prefill * busy_ratio / replicas if pool.role is Role.BOTH else 0.0)
    if left <= 1.0 - busy_ratio:
        return False
    streams, step_s = 1.0, 0.0
    for _ in range(40):
        step_s = pool.profile.decode_s(max(1, round(streams)), streams * context) / left
        streams = asked.rate / replicas * asked.output_tokens * step_s
        if step_s > slo.itl_s or streams > pool.profile.max_streams or streams * context > busy_ratio * pool.profile.kv_tokens:
            return False
    return True


def backlog(seen: Observation) -> float:
    """Requests that wait: they are late already, but as long as they are there every newcomer is late, too."""
    return float(sum(one.waiting for one in seen.replicas) + (seen.traffic.waiting if seen.traffic is not None else 0))


class Demand:
    """State: what of this decision's CPU budget is left. One object a decision; what it learns goes into the Memory."""

    def __init__(self, memory: Memory, what_if: WhatIf | None, now_s: float, budget_s: float, fresh_s: float) -> None:
        """`fresh_s`: how long a trial of an earlier decision still counts."""
        self._memory, self._what_if, self._now_s, self.left_s = memory, what_if, now_s, budget_s
        memory.tried = [one for one in memory.tried if one.at_s > now_s - fresh_s]
        self.replays = 0

    def sizes(
        self, asked: Sample, rate: float, pools: Sequence[Pool], slo: Slo, bounds: Bounds, goal: Goal, near: Mapping[str, int] | None = None
    ) -> Found:
        """The fewest accelerators of which each is worth it at that rate; `near`: sizes to look around, None: what the bound says."""
        means = mix(asked, rate)
        bound, floor = fluid(means, pools, slo), fluid(means, pools, slo, FULL_RATIO)
        bounds = msgspec.structs.replace(
            bounds, least={name: min(bounds.most[name], max(least, math.ceil(floor[name]))) for name, least in bounds.least.items()}
        )
        guess = {name: math.ceil(replicas * self._memory.corrections.get(name, 1.0) - 0.02) for name, replicas in bound.items()}
        if self._what_if is None or asked.requests < LEAST_REQUESTS:
            sizes = bounds.within(guess)
            return Found(sizes=sizes, attainment_ratio=None, met=all(sizes[name] >= guess[name] for name in guess))
        at_rate = asked.at_rate(rate)

        def trial(sizes: dict[str, int]) -> Attainment | None:
            return self._known(sizes, rate, means.prompt_tokens, goal) or self._replay(sizes, pools, at_rate, rate, slo)

        found = fewest(near or guess, pools, bounds, goal, trial)
        if found.attainment_ratio is not None and found.met:
            self._correct(bound, found.sizes, bounds)
        return found

    def _replay(self, sizes: dict[str, int], pools: Sequence[Pool], asked: Sample, rate: float, slo: Slo) -> Attainment | None:
        if self._what_if is None or self.left_s <= 0.0:
            return None
        answer = self._what_if.replay(sizes, pools, asked, slo, self.left_s)
        self.left_s -= answer.spent_s
        self.replays += 1
        if answer.attainment is not None:
            self._memory.tried.append(Tried(self._now_s, dict(sizes), rate, float(asked.prompt_tokens.mean()), answer.attainment))
        return answer.attainment

    def _known(self, sizes: Mapping[str, int], rate: float, prompt_tokens: float, goal: Goal) -> Attainment | None:
        """What was seen of these sizes in this decision, or a moment ago where it decides: nothing to gain at a higher rate, far too few
        at a lower one. What is between is only compared within a sample."""
        for one in reversed(self._memory.tried):
            if one.sizes != sizes or not 0.8 < one.prompt_tokens / max(1.0, prompt_tokens) < 1.25:
                continue
            same = one.at_s == self._now_s and one.rate == rate
            ample = one.rate >= rate * (1.0 - _RATE_STEP) and goal.hopeless(one.sizes, one.attainment)
            far = one.rate <= rate * (1.0 + _RATE_STEP) and goal.far(one.attainment)
            if same or ample or far:
                return one.attainment
        return None

    def _correct(self, bound: dict[str, float], sizes: dict[str, int], bounds: Bounds) -> None:
        """The bound, times this, rounded up, gives what replays found: half a replica below the size found."""
        for name, replicas in bound.items():
            if bounds.least[name] < sizes[name] < bounds.most[name] and replicas > 0.05:
                before = self._memory.corrections.get(name, 1.0)
                if math.ceil(replicas * before - 0.02) != sizes[name]:
                    before += _LEARN_RATIO * ((sizes[name] - 0.5) / replicas - before)
                self._memory.corrections[name] = min(4.0, max(0.1, before))
