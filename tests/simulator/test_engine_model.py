"""The engine model against arithmetic by hand, and against a plain stepping model written the obvious way."""

import math
import os
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import msgspec
import numpy as np
import pytest
from penstock_core.profile import DEFAULT_PROFILE, EngineProfile
from penstock_simulator import engine_model as engines
from penstock_simulator import fleet as fl
from penstock_simulator.workload import Asked, Workload, assemble

SMALL = msgspec.structs.replace(DEFAULT_PROFILE, name="small", kv_tokens=64 * 64, max_streams=8)


def run(workload: Workload, profile: EngineProfile = DEFAULT_PROFILE) -> fl.Fleet:
    """Everything on one worker."""
    fleet = fl.build(workload, [profile], divided=False)
    for request, now in enumerate(workload.arrival_s.tolist()):
        engines.run_passes(fleet, np.nextafter(now, -1.0), False)
        engines.enqueue(fleet.legs, fleet.workers, request, 0, False)
        if request + 1 == workload.requests or workload.arrival_s[request + 1] > now:
            engines.run_passes(fleet, now, False)
            engines.start_idle(fleet, now)
    engines.run_passes(fleet, math.inf, False)
    return fleet


def own(arrival_s: float, prompt: int, output: int) -> Asked:
    """A request that shares nothing."""
    return Asked(arrival_s, prompt, output, ())


def test_a_lone_request_takes_its_prefill_and_one_decode_step_a_token() -> None:
    """First token after prefill_s(n); each further token after a step of one stream with the context it has then."""
    fleet = run(assemble("one", [own(1.0, 1_000, 4)], 0))
    first = 1.0 + DEFAULT_PROFILE.prefill_s(1_000)
    assert fleet.times[0, fl.FIRST_S] == pytest.approx(first)
    assert fleet.times[0, fl.LAST_S] == pytest.approx(first + sum(DEFAULT_PROFILE.decode_s(1, 1_000 + g) for g in (1, 2, 3)))


def test_a_long_prompt_is_computed_in_chunks_of_the_token_budget() -> None:
    """20,000 tokens take two passes of 8,192 and one of the rest."""
    fleet = run(assemble("long", [own(0.0, 20_000, 1)], 0))
    assert fleet.times[0, fl.FIRST_S] == pytest.approx(2 * DEFAULT_PROFILE.prefill_s(8_192) + DEFAULT_PROFILE.prefill_s(20_000 - 2 * 8_192))


def test_prompts_of_one_instant_share_a_pass_and_its_constant() -> None:
    """Two prompts in one pass cost prefill_s of the sum, once."""
    fleet = run(assemble("two", [own(0.0, 1_000, 1), own(0.0, 2_000, 1)], 0))
    assert fleet.times[:, fl.FIRST_S] == pytest.approx([DEFAULT_PROFILE.prefill_s(3_000)] * 2)


def test_a_prefill_stretches_the_gaps_of_streams_and_they_shrink_its_budget() -> None:
    """A pass with a decoding stream lasts prefill plus step; the stream takes one token of the 8,192."""
    fleet = run(assemble("mixed", [own(0.0, 640, 50), own(0.02, 8_192, 1)], 0))
    assert fleet.workers[0, fl.PASSES] == 50
    first = DEFAULT_PROFILE.prefill_s(640)
    one_pass = DEFAULT_PROFILE.prefill_s(8_191) + DEFAULT_PROFILE.decode_s(1, 641)
    assert fleet.times[1, fl.FIRST_S] == pytest.approx(
        first + one_pass + DEFAULT_PROFILE.prefill_s(1) + DEFAULT_PROFILE.decode_s(1, 642), abs=1e-9
    )


def test_full_blocks_are_hit_by_a_request_in_the_very_same_pass() -> None:
    """Blocks are visible from the start of the pass that computes them; the block with the last token is always computed."""
    shared = list(range(10))
    fleet = run(assemble("same", [Asked(0.0, 640, 1, shared), Asked(0.0, 640, 1, shared)], 10))
    assert fleet.legs[:, fl.HIT].tolist() == [0, 9 * 64]
    assert fleet.times[:, fl.FIRST_S] == pytest.approx([DEFAULT_PROFILE.prefill_s(640 + 64)] * 2)


def test_outputs_are_stored_too() -> None:
    """A prompt that goes on where an answer ended hits the answer's full blocks."""
    chain = list(range(8))
    fleet = run(assemble("turns", [Asked(0.0, 128, 200, chain[:5]), Asked(100.0, 500, 1, chain[:7])], 8))
    assert fleet.legs[1, fl.HIT] == 5 * 64


def test_the_tail_of_the_least_recently_used_prompt_is_evicted_first() -> None:
    """After a prompt that needs more than the spare blocks, the head of the old one is still there."""
    old = list(range(40))
    fleet = run(assemble("evict", [Asked(0.0, 40 * 64, 1, old), own(10.0, 34 * 64, 1), Asked(20.0, 40 * 64, 1, old)], 40), SMALL)
    assert fleet.legs[2, fl.HIT] == 30 * 64
    assert fleet.workers[0, fl.EVICTIONS] > 0


def test_growth_beyond_the_cache_sends_the_last_admitted_back_and_loses_no_token() -> None:
    """Two streams that do not fit together: the second is preempted, and both end with all their tokens."""
    fleet = run(assemble("grow", [own(0.0, 1_800, 600), own(0.0, 1_800, 600)], 0), SMALL)
    assert fleet.legs[:, fl.GENERATED].tolist() == [600, 600]
    assert fleet.legs[0, fl.PREEMPTIONS] == 0
    assert fleet.legs[1, fl.PREEMPTIONS] >= 1
    assert fleet.times[1, fl.LAST_S] > fleet.times[0, fl.LAST_S]


def test_all_blocks_are_free_again_at_the_end() -> None:
    """Spare and cached blocks are all blocks, and the ring holds exactly the resident ones."""
    fleet = run(random_workload(7, 60), SMALL)
    assert fleet.workers[0, fl.SPARE] + fleet.workers[0, fl.CACHED] == fleet.workers[0, fl.BLOCKS]
    assert int((fleet.resident > 0).sum()) == fleet.workers[0, fl.CACHED]
    assert fleet.gaps.sum() == sum(output - 1 for output in fleet.legs[:, fl.OUTPUT])


def test_a_stream_whose_prompt_arrives_computed_starts_with_a_decode_step() -> None:
    """Its first token comes out of a pass without prefill."""
    fleet = fl.build(assemble("full", [own(0.0, 1_000, 3)], 0), [DEFAULT_PROFILE], divided=True)
    engines.enqueue(fleet.legs, fleet.workers, 0, 0, True)
    engines.start_idle(fleet, 0.0)
    engines.run_passes(fleet, math.inf, True)
    engines.run_passes(fleet, math.inf, True)
    assert fleet.times[0, fl.FIRST_S] == pytest.approx(DEFAULT_PROFILE.decode_s(1, 1_000))
    assert fleet.times[0, fl.LAST_S] == pytest.approx(sum(DEFAULT_PROFILE.decode_s(1, 1_000 + g) for g in range(3)))


def test_withdrawing_a_waiting_and_a_running_leg_gives_everything_back() -> None:
    """A queue of three loses its middle and its running head; the last one still ends."""
    fleet = fl.build(assemble("three", [own(0.0, 3_000, 5), own(0.0, 3_000, 5), own(0.0, 3_000, 5)], 0), [SMALL], divided=False)
    for leg in range(3):
        engines.enqueue(fleet.legs, fleet.workers, leg, 0, False)
    engines.start_idle(fleet, 0.0)
    engines.withdraw(fleet, 1)
    engines.run_passes(fleet, 0.2, False)
    engines.withdraw(fleet, 0)
    engines.run_passes(fleet, math.inf, False)
    engines.start_idle(fleet, 1.0)
    engines.run_passes(fleet, math.inf, False)
    assert fleet.legs[:, fl.STATE].tolist() == [fl.IDLE, fl.IDLE, fl.OVER]
    assert fleet.workers[0, fl.SPARE] + fleet.workers[0, fl.CACHED] == fleet.workers[0, fl.BLOCKS]


def random_workload(seed: int, requests: int) -> Workload:
    """Prompts of up to 40 blocks that share heads, bursts, answers of up to 300 tokens."""
    rng = np.random.default_rng(seed)
    heads = [list(range(head * 20, head * 20 + 20)) for head in range(4)]
    asked, now = [], 0.0
    for _ in range(requests):
        now += float(rng.choice([0.0, 0.05, 0.4]))
        prompt = int(rng.integers(1, 2_000))
        shared = heads[rng.integers(4)][: min(prompt // 64, int(rng.integers(0, 21)))]
        asked.append(Asked(now, prompt, int(rng.integers(1, 300)), shared))
    return assemble(f"random {seed}", asked, 80)


class Plain:
    """The same engine without arrays, look-ahead or shortcuts: every stream is looked at in every pass."""

    def __init__(self, workload: Workload, profile: EngineProfile) -> None:
        self.w, self.profile, self.free = workload, profile, profile.kv_tokens // 64
        self.cached: OrderedDict[int, None] = OrderedDict()
        self.refs: dict[int, int] = {}
        self.blocks: dict[int, list[int | None]] = {}
        self.computed, self.out = [0] * workload.requests, [0] * workload.requests
        self.first, self.last = [math.nan] * workload.requests, [math.nan] * workload.requests
        self.running: list[int] = []
        self.waiting: list[int] = []

    def ids(self, i: int) -> list[int]:
        return self.w.chain[self.w.offsets[i] : self.w.offsets[i + 1]].tolist()

    def take(self) -> bool:
        if self.free:
            self.free -= 1
            return True
        if not self.cached:
            return False
        self.cached.popitem(last=False)
        return True

    def drop(self, i: int) -> None:
        for block in reversed(self.blocks.pop(i)):
            if block is None:
                self.free += 1
                continue
            self.refs[block] -= 1
            if not self.refs[block]:
                del self.refs[block]
                self.cached[block] = None

    def admit(self, i: int, owed: int) -> bool:
        tokens, ids, hits = int(self.w.prompt_tokens[i]) + self.out[i], self.ids(i), 0
        while hits < (tokens - 1) // 64 and (ids[hits] in self.refs or ids[hits] in self.cached):
            hits += 1
        idle = sum(block in self.cached for block in ids[:hits])
        if -(-tokens // 64) - hits + owed + idle > self.free + len(self.cached):
            return False
        for block in ids[:hits]:
            self.cached.pop(block, None)
            self.refs[block] = self.refs.get(block, 0) + 1
        self.blocks[i], self.computed[i] = list(ids[:hits]), hits * 64
        return True

    def cover(self, i: int, tokens: int) -> bool:
        while len(self.blocks[i]) < -(-tokens // 64):
            while not self.take():
                back = self.running.pop()
                self.drop(back)
                self.waiting.insert(0, back)
                if back == i:
                    return False
            self.blocks[i].append(None)
        return True

    def show(self, i: int, full: int) -> None:
        for at in range(full):
            block = self.ids(i)[at]
            if self.blocks[i][at] is None and block not in self.refs and block not in self.cached:
                self.blocks[i][at] = block
                self.refs[block] = 1

    def step(self, now: float) -> float:
        """Form a pass at `now` and end it; gives its end."""
        budget, chunks, new, streams, context, owed, at = self.profile.pass_tokens, {}, 0, 0, 0, 0, 0
        while True:
            if at == len(self.running):
                if not self.waiting or not budget or at == self.profile.max_streams or not self.admit(self.waiting[0], owed):
                    break
                self.running.append(self.waiting.pop(0))
            i = self.running[at]
            want = int(self.w.prompt_tokens[i]) + self.out[i] - self.computed[i]
            chunk = min(want, budget)
            if not self.cover(i, self.computed[i] + chunk):
                break
            # A block that fills while decoding becomes visible with the next one.
            decoding = want == 1 and self.out[i] > 0
            self.show(i, (self.computed[i] + (0 if decoding else chunk)) // 64)
            chunks[i] = chunk
            budget -= chunk
            if decoding:
                streams, context = streams + 1, context + self.computed[i] + 1
            else:
                new, owed = new + chunk, owed + -(-(want - chunk) // 64)
            at += 1
        now += self.profile.prefill_s(new) + self.profile.decode_s(streams, context)
        for i in list(self.running):
            self.computed[i] += chunks.get(i, 0)
            if i in chunks and self.computed[i] == self.w.prompt_tokens[i] + self.out[i]:
                self.out[i] += 1
                self.first[i] = now if self.out[i] == 1 else self.first[i]
                self.last[i] = now
                if self.out[i] == self.w.output_tokens[i]:
                    self.running.remove(i)
                    self.show(i, self.computed[i] // 64)
                    self.drop(i)
        return now

    def run(self) -> None:
        now, next_one, arrivals = 0.0, 0, self.w.arrival_s.tolist()
        while next_one < len(arrivals) or self.running or self.waiting:
            if not self.running and not self.waiting:
                now = arrivals[next_one]
            while next_one < len(arrivals) and arrivals[next_one] <= now:
                self.waiting.append(next_one)
                next_one += 1
            now = self.step(now)


@pytest.mark.parametrize("seed", range(6))
def test_skipping_over_like_passes_changes_nothing(seed: int) -> None:
    """First and last token of every request are those of the plain model, evictions and preemptions included."""
    workload = random_workload(seed, 60)
    plain = Plain(workload, SMALL)
    plain.run()
    fleet = run(workload, SMALL)
    assert fleet.workers[0, fl.EVICTIONS] > 0
    assert fleet.times[:, fl.FIRST_S] == pytest.approx(np.array(plain.first))
    assert fleet.times[:, fl.LAST_S] == pytest.approx(np.array(plain.last))


@pytest.mark.skipif(os.environ.get("NUMBA_DISABLE_JIT") == "1", reason="this is the plain run")
def test_these_tests_pass_in_plain_python_too() -> None:
    """Where numba is absent the same source runs uncompiled."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", str(Path(__file__)), "-p", "no:cacheprovider"]
    done = subprocess.run(
        command, check=False, env={**os.environ, "NUMBA_DISABLE_JIT": "1", "CI": ""}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout[-2_000:]
