"""Stories of one model's line on a made-up clock: room, overload, priority, tenants, decode load, leaving, and being told when."""

from random import Random

import pytest
from penstock_core.endpoint import Role
from penstock_core.errors import Outcome
from penstock_core.slo import Slo
from penstock_router.admission.claim import Claim, LineLimits
from penstock_router.admission.line import Line, Waiting
from penstock_router.scheduling import Ask, Scheduler

SLO = Slo(1.0, 0.050)
PROMPT = 1_000
PREFILL_S = 0.110  # of PROMPT, by the profile ROUND


class Story:
    """A line over one endpoint (or given ones), and the requests that have come."""

    def __init__(self, build, limits: LineLimits | None = None, endpoints=None, policy: str = "target-misses") -> None:
        self.scheduler = Scheduler(policy, rng=Random(7))
        self.scheduler.set_endpoints(
            endpoints
            or [
                build.endpoint("a", Role.PREFILL, connector="x", kv_generation="g"),
                build.endpoint("d", Role.DECODE, connector="x", kv_generation="g"),
            ],
            0.0,
        )
        self.line = Line(self.scheduler, limits or LineLimits())
        self.came: list[Waiting] = []
        self.now = self.ends_s = 0.0

    def come(
        self, now: float, *, tenant: str = "t", priority: int = 0, tokens: int = PROMPT, weight: float = 1.0, slo: Slo = SLO
    ) -> Waiting:
        ask = Ask(prompt_tokens=tokens, slo=slo, max_tokens=16)
        one = Waiting(ask, Claim(tenant, weight, priority), now)
        self.line.arrive((one,), now)
        self.came.append(one)
        return one

    def prefilled(self, one: Waiting, now: float) -> None:
        """Its prefill leg has ended; it decodes nowhere, so that the prefill side is all there is."""
        assert one.booking is not None
        one.booking.prefilled(now)

    def end(self, one: Waiting, now: float, output: int = 16) -> None:
        assert one.booking is not None
        one.booking.done(now, output)
        self.line.over(one, PROMPT, output, now)

    def run(self, until: float) -> list[Waiting]:
        """Prefill one after the other, and let the line look whenever it wants to; gives who was settled, in order."""
        settled: list[Waiting] = []
        while True:
            serving = next((one for one in self.came if one.booking is not None and not one.over), None)
            if serving is not None and self.ends_s <= self.now:
                self.ends_s = self.now + PREFILL_S
            self.now = min(self.ends_s if serving is not None else float("inf"), max(self.now, self.line.next_s), until)
            if serving is not None and self.now >= self.ends_s:
                self.prefilled(serving, self.now)
                self.end(serving, self.now)
            settled += self.line.settle(self.now)
            if self.now >= until:
                return settled


def test_nothing_waits_while_there_is_room(build):
    """The first requests of an idle fleet start at once, and there is nothing to come back for."""
    story = Story(build)
    first = [story.come(0.0) for _ in range(2)]
    assert all(one.settled and one.booking is not None for one in first)
    assert (story.line.waiting, story.line.next_s) == (0, float("inf"))


def test_a_burst_waits_here_and_all_of_it_that_can_meet_its_target_is_served(build):
    """Ten come at once where one takes 0.11 s and the target is 1 s: a few start, the rest waits, nine start in time, none is lost."""
    story = Story(build)
    came = [story.come(0.0) for _ in range(10)]
    started = [one for one in came if one.booking is not None]
    assert 1 <= len(started) <= 4, "what waits at the endpoint can no more be ordered"
    assert story.line.waiting == 10 - len(started)
    story.run(2.5)
    assert sum(one.booking is not None for one in came) >= 8
    assert all(one.settled for one in came)


def test_what_cannot_be_served_in_time_is_shed_at_once_with_an_honest_retry_after(build):
    """A hundred at once: those predicted beyond twice the target are turned away now, and who comes back when told is served."""
    story = Story(build)
    came = [story.come(0.0) for _ in range(100)]
    shed = [one for one in came if one.turned is not None]
    assert len(shed) >= 70
    assert {one.turned.outcome for one in shed} == {Outcome.SHED}
    assert all("TTFT target of 1 s" in one.turned.message for one in shed)
    told = sorted(one.turned.retry_after_s for one in shed)
    assert told[0] <= 3 and told[-1] >= 5, "not all in the same moment"
    again = []
    for after in told:
        story.run(float(after))
        again.append(story.come(story.now))
    story.run(story.now + 5.0)
    served = sum(one.booking is not None for one in again)
    assert served >= 0.8 * len(again), (served, len(again))


def test_a_higher_priority_overtakes_and_is_never_shed(build):
    """It comes last and starts first of those that wait; beyond what others may wait it still waits."""
    story = Story(build)
    for _ in range(30):
        story.come(0.0)
    important = [story.come(0.0, priority=10) for _ in range(20)]
    assert all(one.turned is None for one in important)
    settled = story.run(4.0)
    first = [one for one in settled if one.booking is not None][:20]
    assert all(one in important for one in first)
    assert all(one.booking is not None for one in important)


def test_light_tenants_are_served_beside_a_heavy_one(build):
    """A heavy tenant's fifty come first; each light tenant's one starts within the first turns, and none of them is shed."""
    story = Story(build)
    for _ in range(50):
        story.come(0.0, tenant="heavy")
    light = [story.come(0.0, tenant=f"light{number}") for number in range(5)]
    settled = story.run(2.0)
    begun = [one for one in settled if one.booking is not None]
    assert all(one.booking is not None for one in light)
    assert max(begun.index(one) for one in light) <= 6


def test_a_full_queue_turns_away_the_heaviest_tenants_last(build):
    """A newcomer of a light tenant finds a place; one of the heavy tenant's gives way, and is told when to come again."""
    story = Story(build, LineLimits(waiting=4, patience=1000.0))
    heavy = [story.come(0.0, tenant="heavy") for _ in range(12)]
    assert story.line.waiting == 4
    full = [one for one in heavy if one.turned is not None]
    assert {one.turned.outcome for one in full} == {Outcome.QUEUE_FULL}
    light = story.come(0.0, tenant="light")
    assert light.turned is None
    assert story.line.waiting == 4
    assert all("allowed: 4" in one.turned.message for one in full)


def test_a_request_that_waits_too_long_is_told_so(build):
    """Where one at a time may start, the next one waits to the time-out and no longer, and hears how long it waited."""
    story = Story(build, LineLimits(started=1, timeout_s=3.0))
    story.come(0.0)
    one = story.come(0.0, priority=5)
    assert not one.settled
    while not one.settled:
        now = story.line.next_s
        story.line.settle(now)
    assert one.turned is not None
    assert one.turned.outcome is Outcome.QUEUE_TIMEOUT
    assert now == pytest.approx(3.0, abs=0.02)
    assert "3.0 s" in one.turned.message


def test_one_that_leaves_is_out_of_the_queue_at_once(build):
    """Its place is free, and ending twice does nothing."""
    story = Story(build)
    came = [story.come(0.0) for _ in range(6)]
    waiting = [one for one in came if not one.settled]
    before = story.line.waiting
    for _ in range(2):
        story.line.over(waiting[0], PROMPT, None, 0.1)
    assert story.line.waiting == before - 1
    started = story.line.started
    story.end(came[0], 0.2)
    story.line.over(came[0], PROMPT, 16, 0.2)
    assert story.line.started == started - 1
    for one in waiting[1:]:
        story.line.over(one, PROMPT, None, 0.3)
    assert (story.line.waiting, story.line.next_s) == (0, float("inf"))


def test_decode_load_counts_as_it_will_be_when_the_prefill_ends(build):
    """20 ms + 1 ms a stream, target 50 ms: while prompts for 27 streams are still being prefilled the decode side is idle, and yet
    the next one waits, because by then it would be too many."""
    fast = build.ROUND.__class__(
        **{**{f: getattr(build.ROUND, f) for f in build.ROUND.__struct_fields__}, "prefill_per_token_s": 1e-7, "pass_tokens": 100_000}
    )
    pool = [build.endpoint(f"p{number}", Role.PREFILL, connector="x", kv_generation="g", profile=fast) for number in range(2)]
    pool.append(build.endpoint("d", Role.DECODE, connector="x", kv_generation="g", kv_total_tokens=0))
    story = Story(build, endpoints=pool)
    came = [story.come(0.0, tokens=10) for _ in range(60)]
    begun = sum(one.booking is not None for one in came)
    assert 20 <= begun <= 30, begun


def test_an_idle_endpoint_is_never_kept_waiting(build):
    """However bad the profile makes it look: a prompt of ten times the target starts on an idle endpoint."""
    story = Story(build, endpoints=[build.endpoint("a")])
    one = story.come(0.0, tokens=90_000, slo=Slo(0.5, 0.001))
    assert one.booking is not None


@pytest.mark.parametrize("policy", ["round-robin", "prefix-affinity", "block-cost:32", "conductor"])
def test_policies_that_predict_nothing_are_judged_by_the_same_beliefs(build, policy):
    """A burst waits under every policy, and goes on."""
    story = Story(build, policy=policy)
    came = [story.come(0.0) for _ in range(8)]
    started = [one for one in came if one.booking is not None]
    assert 1 <= len(started) <= 4
    story.run(2.5)
    assert sum(one.booking is not None for one in came) >= 7


def test_without_a_queue_everything_starts_and_only_the_count_bounds(build):
    """`waiting=0`: no prediction turns anybody away; the bound on started requests does."""
    story = Story(build, LineLimits(started=20, waiting=0))
    came = [story.come(0.0) for _ in range(25)]
    assert [one.booking is not None for one in came] == [True] * 20 + [False] * 5
    assert {one.turned.outcome for one in came[20:]} == {Outcome.QUEUE_FULL}


def test_predictions_that_were_far_off_turn_nobody_away(build):
    """After prefills that took fifty times what was foretold, requests start as they come: the profile cannot be trusted."""
    story = Story(build)
    for number in range(200):
        now = 10.0 * number
        one = story.come(now)
        story.prefilled(one, now + 50 * PREFILL_S)
        story.end(one, now + 50 * PREFILL_S)
    came = [story.come(5_000.0) for _ in range(50)]
    assert all(one.booking is not None for one in came)
