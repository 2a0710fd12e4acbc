"""The autoscaler's brain: one object a model, one step a period, from an Observation to a Decision.

The loop (live) and the simulator call `step`; it reads no clock, does no I/O and remembers only what is in its Memory. Numbers come
from `trend`, `forecast` and `demand`, rules from `decide` and `split`.
"""

import msgspec
from penstock_core.slo import Attainment
from penstock_core.traffic import Window, attained

from penstock_autoscaler.decide import Resized, bounds_of, last_hold_s, late, resize
from penstock_autoscaler.decision import Decision, Reason
from penstock_autoscaler.demand import LEAST_REQUESTS, Demand, backlog, mix
from penstock_autoscaler.forecast import Forecast, forecast
from penstock_autoscaler.jumps import insured, jumped
from penstock_autoscaler.memory import Fared, Memory, Wanted, decode, encode
from penstock_autoscaler.observation import Observation, Phase, Target
from penstock_autoscaler.ports import WhatIf
from penstock_autoscaler.sample import Sample, sample
from penstock_autoscaler.search import Bounds, Found, Goal, shortest
from penstock_autoscaler.settings import ScalerSettings
from penstock_autoscaler.split import switches
from penstock_autoscaler.trend import trend

_PRIOR_REQUESTS = 500.0
MEASURED_S = 60.0
"""Attainment is measured over so long."""
_HASTE, _CHEAPEST, _DEAREST = 3.0, 1.4, 0.8
"""How what a replica must be worth follows from allowed ÷ actual misses: its power, and the ends. Misses that are over cannot be bought
back, so it hardly falls for them."""


class Scaler:
    """State: the Memory. Without a what-if it sizes by the fluid bound alone."""

    def __init__(self, settings: ScalerSettings | None = None, what_if: WhatIf | None = None, memory: Memory | None = None) -> None:
        self.settings = settings or ScalerSettings()
        self._what_if = what_if
        self.memory = memory or Memory()

    def saved(self) -> bytes:
        """The Memory, for whoever goes on."""
        return encode(self.memory)

    def restore(self, kept: bytes) -> None:
        """Go on with what `saved` gave. Raises msgspec.DecodeError for anything else."""
        self.memory = decode(kept)

    def step(self, seen: Observation) -> Decision:
        """What to have now. Call it once a period, with all traffic since the last call."""
        if seen.traffic is None:
            return _unchanged(seen, Reason.NO_DATA, "No router has said what arrived: nothing is changed.", valid=False)
        start_s = max((pool.start_s for pool in seen.pools), default=0.0)
        for interval in (*seen.earlier, seen.traffic):
            self._learn(interval, seen.target)
            if self.memory.jumped_s is None or jumped(self.memory.counts, max(MEASURED_S, start_s)):
                self.memory.jumped_s = interval.until_s
        if seen.paused:
            return _unchanged(seen, Reason.PAUSED, f"Paused: {seen.paused}.")
        if seen.pools and all(pool.name in seen.overridden for pool in seen.pools):
            return _unchanged(seen, Reason.OVERRIDDEN, "; ".join(f"{name}: {who}" for name, who in seen.overridden.items()) + ".")
        found = trend(self.memory.counts)
        self.memory.trust({pool.name for pool in seen.pools if pool.fit is not None})
        expected = forecast(found, self.memory.season, seen.now_s, start_s + self.settings.period_s)
        busy = expected.now > 0.0 or seen.traffic.waiting > 0 or seen.traffic.arrivals > 0
        bounds = bounds_of(seen, busy or not self._idle(seen.now_s))
        asked = sample(self.memory.windows, self.settings.sample_requests, found.pieces)
        if asked is None or expected.now <= 0.0:
            return self._without_sample(seen, bounds, busy)
        return self._sized(seen, asked, expected, bounds)

    def _sized(self, seen: Observation, asked: Sample, expected: Forecast, bounds: Bounds) -> Decision:
        settings, slo = self.settings, seen.target.slo
        here = {pool.name: pool.desired for pool in seen.pools}
        goal = Goal(worth_ratio=self._worth(seen.target.attainment_ratio), here=here, tolerance_ratio=settings.tolerance_ratio)
        recover_s = max(settings.recover_s, *(pool.start_s for pool in seen.pools))
        rate = expected.expected + min(expected.now, backlog(seen) / recover_s)
        demand = Demand(self.memory, self._what_if, seen.now_s, settings.replay_budget_s, settings.replay_fresh_s)
        found = demand.sizes(asked, rate, seen.pools, slo, bounds, goal)
        means = mix(asked, expected.expected)
        quiet_s = 0.0 if self.memory.jumped_s is None else seen.now_s - self.memory.jumped_s
        needed = insured(found, means, seen.pools, slo, bounds, settings, quiet_s)
        stands = found
        if any(needed.sizes[name] < here[name] for name in here):
            near = found.sizes if found.attainment_ratio is not None else None
            stands = demand.sizes(asked, rate * (1.0 + settings.margin_ratio), seen.pools, slo, bounds, goal, near)
        if self._what_if is not None and stands.attainment_ratio is None and asked.requests >= LEAST_REQUESTS:
            stands = _unchecked(found, here)
        kept = insured(stands, means, seen.pools, slo, bounds, settings, quiet_s)
        needed, kept = self._as_measured(seen, needed, kept, bounds)
        self._remember(
            seen, {name: min(here[name], size) if needed.sizes[name] <= here[name] else size for name, size in kept.sizes.items()}
        )
        resized = resize(seen.pools, needed.sizes, needed.met, self.memory.wanted, seen.now_s, settings, bounds)
        return self._decision(seen, resized, needed, expected, rate, goal, asked, kept, demand)

    def _decision(
        self,
        seen: Observation,
        resized: Resized,
        needed: Found,
        expected: Forecast,
        rate: float,
        goal: Goal,
        asked: Sample,
        kept: Found,
        demand: Demand,
    ) -> Decision:
        here = {pool.name: pool.desired for pool in seen.pools}
        spare = {name: here[name] - kept.sizes[name] for name in here if name not in seen.overridden}
        answer_s = float(asked.output_tokens.mean()) * seen.target.slo.itl_s
        switched = switches(here, resized.desired, spare, seen.pools, seen.replicas, answer_s)
        desired = dict(resized.desired)
        for name, size in here.items():
            given = sum(one.pool == name and any(one.id == switch.replica for switch in switched) for one in seen.replicas)
            desired[name] = min(desired[name], size - given) if given else desired[name]
        facts = {
            "rate_now": expected.now,
            "rate_expected": expected.expected,
            "rate_planned": rate,
            "worth_ratio": goal.worth_ratio,
            "replays": float(demand.replays),
            **{f"needed {name}": float(size) for name, size in needed.sizes.items()},
        }
        if needed.attainment_ratio is not None:
            facts["predicted_ratio"] = needed.attainment_ratio
        return Decision(
            at_s=seen.now_s,
            desired=desired,
            switches=switched,
            late=late(seen, self.settings),
            reason=Reason.SWITCH if switched else resized.reason,
            message=_words(here, desired, resized, needed, expected, rate, seen.target.attainment_ratio),
            facts=facts,
        )

    def _without_sample(self, seen: Observation, bounds: Bounds, busy: bool) -> Decision:
        """Nobody comes, or nobody has been answered yet: what is there stays, but for what the bounds say."""
        here = {pool.name: pool.desired for pool in seen.pools}
        sizes = bounds.within(here if busy else dict(bounds.least))
        self._remember(seen, sizes)
        resized = resize(seen.pools, sizes, True, self.memory.wanted, seen.now_s, self.settings, bounds)
        words = "Requests have come and none has been answered yet" if busy else "No requests"
        message = f"{words}: {_change(here, resized.desired)}."
        return Decision(at_s=seen.now_s, desired=resized.desired, late=late(seen, self.settings), reason=resized.reason, message=message)

    def _as_measured(self, seen: Observation, needed: Found, kept: Found, bounds: Bounds) -> tuple[Found, Found]:
        """What is predicted, corrected by what is measured: nothing shrinks while targets are missed; where they go on being missed with
        all replicas ready, one more is needed than replays say."""
        allowed = 1.0 - seen.target.attainment_ratio
        lately = sum((one.attainment for one in self.memory.fared), Attainment())
        missed = 1.0 - (lately.goodput_ratio if lately.goodput_ratio is not None else 1.0)
        here = {pool.name: pool.desired for pool in seen.pools}
        if missed > 2.0 * allowed:
            kept = msgspec.structs.replace(kept, sizes={name: max(size, here[name]) for name, size in kept.sizes.items()})
        settled = all(
            one.ready_s is not None and seen.now_s - one.ready_s > MEASURED_S for one in seen.replicas if one.phase is not Phase.DRAINING
        )
        if missed > 4.0 * allowed and lately.requests >= 30 and settled and not any(needed.sizes[name] > here[name] for name in here):
            short = [pool for pool in shortest(lately, seen.pools) if here[pool.name] < bounds.most[pool.name]]
            if short:
                sizes = {**here, short[0].name: here[short[0].name] + 1}
                needed = Found(sizes=sizes, attainment_ratio=None, met=True, missed_ratio=missed)
        return needed, kept

    # -- what is remembered ---------------------------------------------------------------------------------------

    def _learn(self, traffic: Window, target: Target) -> None:
        self.memory.add(traffic, self.settings)
        fade = 0.5 ** (traffic.length_s / self.settings.budget_half_life_s)
        share = traffic.endings / max(1, len(traffic.ended.ok))
        fared = attained(traffic.ended, target.slo)
        self.memory.counted = self.memory.counted * fade + fared.requests * share
        self.memory.missed = self.memory.missed * fade + (fared.requests - fared.both_met) * share
        recent = [one for one in self.memory.fared if one.until_s > traffic.until_s - MEASURED_S]
        self.memory.fared = [*recent, Fared(traffic.until_s, fared)]

    def _remember(self, seen: Observation, sizes: dict[str, int]) -> None:
        longest_s = max((last_hold_s(pool, self.settings) for pool in seen.pools), default=0.0) + 2.0 * self.settings.period_s
        self.memory.wanted = [*(one for one in self.memory.wanted if one.at_s > seen.now_s - longest_s), Wanted(seen.now_s, sizes)]

    def _idle(self, now_s: float) -> bool:
        """Whether nobody has come for so long that a pool may be emptied."""
        counts = self.memory.counts
        since_s = counts[0].until_s - counts[0].length_s if counts else now_s
        return not any(one.arrivals for one in counts if one.until_s > now_s - self.settings.idle_s) and (
            now_s - since_s >= min(self.settings.idle_s, self.settings.trend_s)
        )

    def _worth(self, target_ratio: float) -> float:
        """What a replica must be worth: less where past misses have used up more than the target allows, more where they have not."""
        allowed = 1.0 - target_ratio
        missed = (self.memory.missed + _PRIOR_REQUESTS * allowed) / (self.memory.counted + _PRIOR_REQUESTS)
        haste: float = (allowed / max(1e-9, missed)) ** _HASTE
        return self.settings.worth_factor * allowed * min(_CHEAPEST, max(_DEAREST, haste))


def _unchecked(needed: Found, here: dict[str, int]) -> Found:
    """What to keep where there was no time to replay it with the margin: one replica more instead; all, where nothing was replayed."""
    if needed.attainment_ratio is None:
        return msgspec.structs.replace(needed, sizes={name: max(size, here[name]) for name, size in needed.sizes.items()})
    return msgspec.structs.replace(needed, sizes={name: max(size, min(here[name], size + 1)) for name, size in needed.sizes.items()})


def _unchanged(seen: Observation, reason: Reason, message: str, *, valid: bool = True) -> Decision:
    desired = {pool.name: pool.desired for pool in seen.pools}
    return Decision(at_s=seen.now_s, desired=desired, reason=reason, message=message, valid=valid)


def _change(here: dict[str, int], desired: dict[str, int]) -> str:
    return ", ".join(f"{name} {here[name]}" + (f" → {size}" if size != here[name] else "") for name, size in desired.items())


def _words(
    here: dict[str, int], desired: dict[str, int], resized: Resized, needed: Found, expected: Forecast, planned: float, goal_ratio: float
) -> str:
    rate = f"{expected.now:.2f} requests/s" + (f", planned for {planned:.2f}" if planned > 1.01 * expected.now else "")
    sizes = " + ".join(f"{size} {name}" for name, size in needed.sizes.items())
    share = "" if needed.attainment_ratio is None else f" would meet {needed.attainment_ratio:.1%}"
    if needed.spare:
        share += f"{' without the' if share else ':'} {needed.spare} kept for a jump"
    if needed.missed_ratio is not None:
        share += (
            f", one more than there are: {needed.missed_ratio:.0%} of the last minute's requests missed a target, with all of them ready"
        )
    elif needed.met and needed.attainment_ratio is not None and needed.attainment_ratio < goal_ratio:
        share += ", and one more would bring too little"
    waiting = "" if not resized.smaller else "; fewer would do, but not for long enough yet"
    return f"{_change(here, desired)}: {rate}; {sizes}{share}{waiting}."
