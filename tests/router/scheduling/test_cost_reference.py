"""The kernel against the formulas of the design written down plainly, over random beliefs (Hypothesis)."""

import math
import statistics
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from penstock_core.endpoint import Role
from penstock_core.profile import PROFILES, EngineProfile
from penstock_core.slo import Slo
from penstock_router import columns as col
from penstock_router import kernel

pytestmark = pytest.mark.usefixtures("each_kernel")
NOW = 100.0
TABLE: list[float] = []


@dataclass
class Stream:
    context: int
    tokens: int  # g
    first_s: float
    last_s: float
    target_s: float
    most: float

    def cell(self) -> int:
        return -1


@dataclass
class Prompt:
    """One that waits; `behind` tokens were booked after it."""

    behind: int
    due_s: float
    target_s: float
    cell: int = -1


@dataclass
class Worker:
    """Beliefs of one worker, in the letters of the design."""

    profile: EngineProfile
    U: int
    D: int
    X: int
    t_e: float
    streams: list[Stream] = field(default_factory=list)
    held_chunks: int = 0
    prompts: list[Prompt] = field(default_factory=list)
    foreign_streams: int = 0
    foreign_context: int = 0

    @property
    def b(self) -> int:
        return len(self.streams) + self.foreign_streams

    @property
    def C(self) -> int:  # noqa: N802 -- the design's letter
        return sum(one.context for one in self.streams) + self.foreign_context

    def through(self, tokens: float) -> float:
        budget = max(1, self.profile.pass_tokens - self.b)
        full, rest = divmod(int(tokens), budget)
        step = self.profile.decode_s(self.b, self.C)
        return full * self.profile.prefill_s(budget) + self.profile.prefill_s(rest) + math.ceil(tokens / budget) * step


def short(k: float, most: float) -> float:
    """F(k) = P(length < k), outputs ending at `most` at the latest."""
    return 1.0 if k > most else TABLE[min(math.ceil(k), len(TABLE) - 1)]


def missed(ttft: float, spare: float) -> float:
    """With the deviation that is believed before anything is measured."""
    return 0.5 * math.erfc((spare - ttft) / (math.sqrt(2) * math.hypot(0.02, 0.03 * ttft)))


def reference(worker: Worker, n: int, chunk_tokens: float, slo: Slo, divided: bool, streams: float, output: int) -> dict[str, float]:
    profile = worker.profile
    h = min(math.floor(worker.held_chunks * chunk_tokens), n - 1)
    u = n - h
    step = profile.decode_s(worker.b, worker.C)
    if worker.X:
        left = max(0.0, worker.through(worker.X) - (NOW - worker.t_e))
    elif worker.U - worker.D:  # the next pass forms at t_e
        left = max(0.0, worker.t_e - NOW)
    else:
        left = step / 2
    waiting = max(0, worker.U - worker.D - worker.X)
    ttft = left + worker.through(waiting + u) + (profile.transfer_s(n) if divided else 0.0)
    delta = worker.through(waiting + u) - worker.through(waiting)
    itl = step if divided else profile.decode_s(worker.b + 1, worker.C + n)
    budget = max(1, profile.pass_tokens - worker.b)
    ends_s = NOW + (left if worker.X else 0.0)
    ahead_s = worker.through(waiting) - math.ceil(waiting / budget) * step
    others = longer = 0.0
    for one in worker.streams:
        room = one.target_s - itl
        if room <= 0:
            continue  # F(∞) − F(∞)
        stall = max(0.0, max(one.last_s, ends_s - itl) - one.first_s - (one.tokens - 1) * itl) + ahead_s
        before, after = 1 + stall / room, 1 + (stall + delta) / room
        more = max(0.0, short(after, one.most) - short(max(one.tokens, before), one.most))
        others += more / max(0.001, 1 - short(one.tokens, one.most))
    joined = left + worker.through(min(waiting + u, math.ceil(waiting / budget) * budget))
    rest = left + worker.through(waiting + u) - joined
    for prompt in worker.prompts:
        if prompt.behind < waiting % budget:  # it ends in the pass that the newcomer fills up
            spare = prompt.due_s - NOW
            longer += (joined - left - worker.through(waiting)) / slo.ttft_s
            others += max(0.0, missed(joined, spare) - missed(left + worker.through(waiting), spare))
        if prompt.target_s > itl and rest > 0:  # a stream by the time the newcomer has passes of its own
            others += short(1 + rest / (prompt.target_s - itl), math.inf)
    if worker.foreign_streams and slo.itl_s > itl:
        k = min(math.ceil(1 + delta / (slo.itl_s - itl)), len(TABLE) - 1)
        mean = sum(1 - TABLE[i] for i in range(1, len(TABLE)))
        others += worker.foreign_streams * sum(TABLE[k] - TABLE[g] for g in range(k)) / mean
    own = missed(ttft, slo.ttft_s)
    itl_miss = 0.0 if divided else float(itl > slo.itl_s)
    passes = math.ceil((waiting + u) / budget) - math.ceil(waiting / budget)
    seconds = delta - passes * step + profile.prefill_s(u, h) - profile.prefill_s(u, 0)
    work = seconds * (1 / slo.ttft_s + streams / (slo.itl_s * output))
    misses = {"own_miss": own, "others_miss": others, "itl_miss": itl_miss}
    cost = ttft / slo.ttft_s + sum(misses.values()) + longer + work
    return {"ttft_s": ttft, "itl_s": itl, **misses, "others_wait": longer, "work": work, "cost": cost}


@st.composite
def streams(draw: st.DrawFn) -> Stream:
    tokens = draw(st.integers(1, 400))
    last = NOW - draw(st.floats(0.0, 0.3))
    first = last - (tokens - 1) * draw(st.floats(0.005, 0.05)) - draw(st.floats(0.0, 1.0))
    most = draw(st.sampled_from([math.inf, tokens + 1.0, 1_000.0]))
    return Stream(draw(st.integers(1, 9_000)), tokens, first, last, draw(st.sampled_from([0.025, 0.05, 0.2])), most)


@st.composite
def workers(draw: st.DrawFn, decoding: bool) -> Worker:
    profile = draw(st.sampled_from(sorted(PROFILES.values(), key=lambda one: one.name)))
    found = draw(st.lists(streams(), max_size=6)) if decoding else []
    worker = Worker(profile, 0, 0, 0, 0.0, found)
    if decoding and draw(st.booleans()):
        worker.foreign_streams, worker.foreign_context = draw(st.integers(1, 20)), draw(st.integers(0, 30_000))
    worker.held_chunks = draw(st.integers(0, 200))
    kind = draw(st.sampled_from(["idle", "passing", "forming", "all computed"]))
    if kind == "passing":
        worker.D = draw(st.integers(0, 20_000))
        worker.X = draw(st.integers(1, profile.pass_tokens - worker.b))
        worker.U = worker.D + worker.X + draw(st.integers(0, 30_000))
        worker.t_e = NOW - draw(st.floats(0.01, 0.99)) * worker.through(worker.X)
    elif kind == "forming":
        worker.U, worker.t_e = draw(st.integers(1, 30_000)), NOW + draw(st.sampled_from([0.0, 0.004]))
    elif kind == "all computed":
        worker.U = worker.D = draw(st.integers(1, 9_000))
    targets = [0.025, 0.05, 0.2] if decoding else [math.inf]
    waits = st.builds(Prompt, st.integers(0, worker.U), st.floats(NOW - 1.0, NOW + 5.0), st.sampled_from(targets))
    worker.prompts = draw(st.lists(waits, max_size=5)) if worker.U else []
    return worker


def believe(scheduler, row: int, worker: Worker) -> None:
    beliefs = scheduler.beliefs
    for prompt in worker.prompts:
        asked = np.zeros(col.ASK)
        asked[col.DUE_AT_S], asked[col.TARGET_S] = prompt.due_s, prompt.target_s
        asked[col.MOST_OUTPUT], asked[col.OUTPUT_CLASS] = math.inf, col.EVERYTHING
        kernel.book_prompt(beliefs.rows, beliefs.streams, row, 0.0, asked, False)
        beliefs.booked_prompt(row, prompt)
        beliefs.cells[prompt.cell + col.END_TOKENS] = 1_000_000 + worker.U - prompt.behind
    cells = beliefs.rows[row]
    cells[col.BOOKED], cells[col.COMPUTED], cells[col.PASSING], cells[col.PASS_START_S] = worker.U, worker.D, worker.X, worker.t_e
    cells[col.STREAMS], cells[col.CONTEXT] = len(worker.streams), sum(one.context for one in worker.streams)
    cells[col.FOREIGN_STREAMS], cells[col.FOREIGN_CONTEXT] = worker.foreign_streams, worker.foreign_context
    cells[col.PROMPTS], cells[col.EVER] = len(worker.prompts), 1_000_000 + worker.U
    for one in worker.streams:
        beliefs.open_cell(row, one, one.first_s, one.target_s, one.most, col.EVERYTHING)
        beliefs.cells[one.cell + col.LAST_S] = one.last_s
        beliefs.cells[one.cell + col.TOKENS] = one.tokens


@pytest.mark.parametrize("divided", [False, True])
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
def test_the_kernel_computes_the_formulas(build, divided, data):
    """Every term and the cost of every candidate, and the least of them is taken, aggregated and in a dedicated prefill pool."""
    believed = data.draw(st.lists(workers(decoding=not divided), min_size=1, max_size=5))
    n = data.draw(st.integers(1, 20_000))
    slo = Slo(ttft_s=data.draw(st.sampled_from([0.2, 1.0, 5.0])), itl_s=data.draw(st.sampled_from([0.02, 0.05, 0.1])))
    chunk_tokens = data.draw(st.sampled_from([64.0, 51.7]))
    role = Role.PREFILL if divided else Role.BOTH
    endpoints = [build.endpoint(f"w{i}", role, slot=i + 3, profile=one.profile, kv_total_tokens=0) for i, one in enumerate(believed)]
    scheduler = build.scheduler([*endpoints, build.endpoint("d", Role.DECODE)] if divided else endpoints)
    TABLE[:] = scheduler.lengths.model.table[col.SHORTER].tolist()
    expected, facts = {}, (statistics.mean(one.b for one in believed), scheduler.lengths.expected_tokens(None, None))
    for i, worker in enumerate(believed):
        believe(scheduler, scheduler._row_of_id[f"w{i}"], worker)
        expected[f"w{i}"] = reference(worker, n, chunk_tokens, slo, divided, *facts)
    hits = build.Hits({i + 3: one.held_chunks for i, one in enumerate(believed)})
    ask = build.ask(n, slo=slo, hits=hits, tokens_per_chunk=chunk_tokens, explain=True)
    placement = scheduler.place([ask], NOW)[0].placement
    for candidate in placement.candidates:
        name = candidate.prefill if divided else candidate.decode
        found = {**candidate.terms, "ttft_s": candidate.ttft_s, "itl_s": candidate.itl_s, "cost": candidate.cost}
        for term, value in expected[name].items():
            assert found[term] == pytest.approx(value, rel=1e-9, abs=1e-12), (name, term)
    taken = placement.prefill if divided else placement.decode
    assert expected[taken.id]["cost"] == pytest.approx(min(one["cost"] for one in expected.values()), rel=1e-9, abs=1e-12)
    assert len(placement.candidates) == len(believed)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
def test_looking_at_fewer_streams_changes_no_choice(build, data):
    """The pruned search takes an endpoint of the least full cost."""
    believed = data.draw(st.lists(workers(decoding=True), min_size=2, max_size=6))
    n, slo = data.draw(st.integers(1, 9_000)), Slo(ttft_s=1.0, itl_s=0.05)
    scheduler = build.scheduler([build.endpoint(f"w{i}", profile=one.profile, kv_total_tokens=0) for i, one in enumerate(believed)])
    TABLE[:] = scheduler.lengths.model.table[col.SHORTER].tolist()
    for i, worker in enumerate(believed):
        worker.held_chunks = 0
        believe(scheduler, scheduler._row_of_id[f"w{i}"], worker)
    facts = statistics.mean(one.b for one in believed), scheduler.lengths.expected_tokens(None, None)
    expected = [reference(one, n, 64.0, slo, False, *facts)["cost"] for one in believed]
    taken = scheduler.place([build.ask(n, slo=slo)], NOW)[0].placement.decode
    assert expected[int(taken.id[1:])] == pytest.approx(min(expected), rel=1e-9, abs=1e-12)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(booked=st.lists(st.tuples(st.floats(0.0, 0.3), st.integers(1, 30_000)), min_size=1, max_size=8), streams=st.integers(0, 40))
def test_passes_form_and_end_as_in_a_plain_queue(build, booked, streams):
    """U, D, X and t_e after any placements equal those of a worker that is stepped pass by pass."""
    profile = PROFILES["qwen3-32b-h100x2"]
    scheduler = build.scheduler([build.endpoint("w", profile=profile, kv_total_tokens=0)])
    row = scheduler.beliefs.rows[0]
    row[col.STREAMS], row[col.CONTEXT] = streams, 700 * streams
    step, budget = profile.decode_s(streams, 700 * streams), profile.pass_tokens - streams
    now, waiting, computed, passing, start = 10.0, 0, 0, 0, 0.0
    for wait_s, tokens in booked:
        now += wait_s
        while True:
            if not passing and waiting and start < now:
                passing = min(waiting, budget)
            if not passing or start + profile.prefill_s(passing) + step > now:
                break
            start += profile.prefill_s(passing) + step
            waiting, computed, passing = waiting - passing, computed + passing, 0
        if not waiting:
            start = now + step / 2
        waiting += tokens
        scheduler.place([build.ask(tokens)], now)
        assert (row[col.BOOKED], row[col.COMPUTED], row[col.PASSING]) == (waiting + computed, computed, passing)
        assert row[col.PASS_START_S] == pytest.approx(start, abs=1e-9)
