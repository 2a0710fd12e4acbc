"""The simulated fleet behind the production scheduler: arithmetic, lives of workers, and one seed, one result."""

import math

import msgspec
import numpy as np
import pytest
from penstock_core.endpoint import Role
from penstock_core.profile import DEFAULT_PROFILE, EngineProfile
from penstock_core.slo import Slo
from penstock_router import columns as col
from penstock_router.policies import RoundRobin
from penstock_router.scheduling import Ask
from penstock_simulator.cluster import Cluster, replay
from penstock_simulator.fleet import PROMPT_TOKENS
from penstock_simulator.generate import Traffic, generate
from penstock_simulator.report import summarise
from penstock_simulator.setup import Bookings, FrontEnd, Setup, WorkerSpec, mixed_workers, same_workers
from penstock_simulator.workload import Asked, Workload, assemble

PROFILE = msgspec.structs.replace(DEFAULT_PROFILE, kv_tokens=2_048 * 64)
TRAFFIC = Traffic(kind="shared-prefix", requests=300, rate=25.0, prompt_tokens=1_500, output_tokens=80, groups=6, prefix_tokens=1_024)


def own(*rows: tuple[float, int, int]) -> Workload:
    """Requests (arrival_s, prompt, output) that share nothing."""
    return assemble("own", [Asked(*row, ()) for row in rows], 0)


def workers(count: int = 0, prefill: int = 0, decode: int = 0, profile: EngineProfile = PROFILE) -> tuple[WorkerSpec, ...]:
    return same_workers(count, prefill=prefill, decode=decode, profile=profile)


@pytest.mark.parametrize("policy", ["round-robin", "least-request", "prefix-affinity", "target-misses", "block-cost:8"])
@pytest.mark.parametrize("fleet", [workers(3), workers(0, 2, 1), workers(1, 1, 1)], ids=["aggregated", "divided", "mixed"])
def test_every_request_ends_with_all_its_tokens_and_one_seed_gives_one_result(policy: str, fleet: tuple[WorkerSpec, ...]) -> None:
    """Whatever the policy and the roles: all served, in order, and twice the same."""
    workload = generate(TRAFFIC)
    first, second = (replay(workload, Setup(workers=fleet, policy=policy, seed=3)) for _ in range(2))
    assert set(first.outcomes) == {"ok"}
    assert (first.first_s > first.arrival_s).all()
    assert (first.last_s >= first.first_s).all()
    assert summarise(first) == summarise(second)
    assert first.gaps.sum() == (workload.output_tokens - 1).sum()


def test_undivided_and_alone_a_request_takes_what_the_profile_says() -> None:
    """TTFT is its prefill, and each gap a decode step."""
    found = replay(own((2.0, 1_000, 3)), Setup(workers=workers(2)))
    assert found.first_s[0] - 2.0 == pytest.approx(PROFILE.prefill_s(1_000))
    assert found.last_s[0] - found.first_s[0] == pytest.approx(PROFILE.decode_s(1, 1_001) + PROFILE.decode_s(1, 1_002))


def test_a_front_end_delays_the_engine_by_what_it_takes() -> None:
    """A constant and so much a token, before the prefill; gaps between tokens stay."""
    front = FrontEnd(constant_s=0.003, per_token_s=2e-6)
    plain, fronted = (replay(own((2.0, 1_000, 3)), Setup(workers=workers(2), front_end=one)) for one in (FrontEnd(), front))
    assert fronted.first_s[0] - plain.first_s[0] == pytest.approx(0.005)
    assert fronted.last_s[0] - fronted.first_s[0] == pytest.approx(plain.last_s[0] - plain.first_s[0])


@pytest.mark.parametrize("fleet", [workers(2), workers(0, 2, 2)], ids=["aggregated", "divided"])
def test_what_is_in_the_front_end_of_a_worker_that_dies_is_placed_again(fleet: tuple[WorkerSpec, ...]) -> None:
    """Nothing is lost, and nothing is computed twice."""
    dying = (msgspec.structs.replace(fleet[0], dies_s=0.05), *fleet[1:])
    workload = own((0.0, 640, 5), (0.0, 640, 5), (0.0, 640, 5), (0.0, 640, 5))
    found = replay(workload, Setup(workers=dying, policy="round-robin", front_end=FrontEnd(constant_s=0.1)))
    assert found.outcomes == ["ok"] * 4
    assert found.counters[:, PROMPT_TOKENS].sum() == 4 * 640
    assert found.counters[0, PROMPT_TOKENS] == 0


def test_divided_ttft_is_prefill_transfer_and_the_first_decode_step() -> None:
    """The first token the client sees comes from the decode worker."""
    found = replay(own((1.0, 6_400, 5)), Setup(workers=workers(0, 1, 1)))
    expected = PROFILE.prefill_s(6_400) + PROFILE.transfer_s(6_400) + PROFILE.decode_s(1, 6_400)
    assert found.first_s[0] - 1.0 == pytest.approx(expected)
    free = msgspec.structs.replace(PROFILE, transfer_bytes_per_s=math.inf)
    quick = replay(own((1.0, 6_400, 5)), Setup(workers=workers(0, 1, 1, free)))
    assert found.first_s[0] - quick.first_s[0] == pytest.approx(PROFILE.transfer_s(6_400))


def test_prompts_that_end_together_share_the_link_of_their_prefill_worker() -> None:
    """Two equal transfers at once take twice as long, unless each comes from a worker of its own."""
    slow = msgspec.structs.replace(PROFILE, transfer_bytes_per_s=1e9)
    together = replay(own((0.0, 640, 2), (0.0, 640, 2)), Setup(workers=workers(0, 1, 2, slow), policy="round-robin"))
    alone = replay(own((0.0, 640, 2), (0.0, 640, 2)), Setup(workers=workers(0, 2, 2, slow), policy="round-robin"))
    longer = (together.first_s - alone.first_s) - (PROFILE.prefill_s(1_280) - PROFILE.prefill_s(640))
    assert longer == pytest.approx(np.full(2, slow.transfer_s(640)), rel=1e-6)


def test_only_blocks_that_the_decode_worker_lacks_are_sent() -> None:
    """The second prompt of a kind moves its last block and what is new."""
    slow = msgspec.structs.replace(PROFILE, transfer_bytes_per_s=1e8)
    shared = list(range(20))
    workload = assemble("again", [Asked(0.0, 1_280, 2, shared), Asked(10.0, 1_344, 2, shared)], 20)
    found = replay(workload, Setup(workers=workers(0, 1, 1, slow)))
    expected = slow.prefill_s(64) + slow.transfer_s(64) + slow.decode_s(1, 1_344)
    assert found.first_s[1] - 10.0 == pytest.approx(expected)


def test_a_dead_worker_cuts_its_streams_and_the_rest_is_placed_again() -> None:
    """What had a token fails, what had none is served elsewhere, and the dead worker costs nothing afterwards."""
    fleet = (WorkerSpec(id="a", profile=PROFILE, dies_s=1.0), WorkerSpec(id="b", profile=PROFILE))
    workload = own((0.0, 640, 5_000), (0.0, 640, 5_000), (0.99, 8_000, 2), (0.99, 8_000, 2))
    found = replay(workload, Setup(workers=fleet, policy="round-robin"))
    assert sorted(found.outcomes) == ["ok", "ok", "ok", "upstream_failed"]
    assert found.worker_s[0] == 1.0
    assert summarise(found).outcomes == {"ok": 3, "upstream_failed": 1}


@pytest.mark.parametrize("dead", ["prefill-0", "decode-0"])
def test_a_death_in_the_middle_of_divided_work_loses_only_what_had_streamed(dead: str) -> None:
    """Transfers from and to the dead worker are placed anew; every request has an end."""
    fleet = tuple(msgspec.structs.replace(one, dies_s=5.0) if one.id == dead else one for one in workers(0, 2, 2))
    found = replay(generate(TRAFFIC), Setup(workers=fleet))
    assert set(found.outcomes) <= {"ok", "upstream_failed"}
    cut = [i for i, one in enumerate(found.outcomes) if one == "upstream_failed"]
    assert all(found.first_s[i] <= 5.0 for i in cut)
    assert bool(cut) == (dead == "decode-0")


def test_a_worker_takes_requests_only_once_it_is_ready() -> None:
    """Before `ready_s` everything goes to the other one; it is paid from `asked_s`."""
    fleet = (WorkerSpec(id="a", profile=PROFILE), WorkerSpec(id="late", profile=PROFILE, asked_s=4.0, ready_s=6.0))
    found = replay(generate(TRAFFIC), Setup(workers=fleet, policy="round-robin"))
    assert (found.worker[found.arrival_s < 6.0] == 0).all()
    assert (found.worker[found.arrival_s > 6.0] == 1).any()
    assert found.worker_s[1] == pytest.approx(found.span_s - 4.0)


def test_a_draining_worker_finishes_its_streams_and_leaves() -> None:
    """No new placements after `drains_s`, nothing cut, and it is paid until it is empty."""
    fleet = (WorkerSpec(id="a", profile=PROFILE), WorkerSpec(id="b", profile=PROFILE, drains_s=5.0))
    found = replay(generate(TRAFFIC), Setup(workers=fleet, policy="round-robin"))
    assert set(found.outcomes) == {"ok"}
    assert (found.worker[found.arrival_s > 5.0] == 0).all()
    assert 5.0 < found.worker_s[1] < found.span_s


@pytest.mark.parametrize("leaving", ["prefill-0", "decode-0"])
def test_draining_in_a_divided_fleet_waits_for_what_is_on_its_way(leaving: str) -> None:
    """Slow transfers from and to the leaving worker end before it does; nothing is cut."""
    slow = msgspec.structs.replace(PROFILE, transfer_bytes_per_s=1e9)
    fleet = tuple(msgspec.structs.replace(one, drains_s=5.0) if one.id == leaving else one for one in workers(0, 2, 2, slow))
    found = replay(generate(TRAFFIC), Setup(workers=fleet))
    at = [spec.id for spec in fleet].index(leaving)
    assert set(found.outcomes) == {"ok"}
    assert 5.0 < found.worker_s[at] < found.span_s
    assert leaving.startswith("prefill") or found.last_s[found.worker == at].max() <= found.worker_s[at]


def test_with_no_worker_a_request_is_not_served_and_counts_as_a_miss() -> None:
    """Goodput is over all requests."""
    fleet = (WorkerSpec(id="a", profile=PROFILE, ready_s=5.0),)
    summary = summarise(replay(own((1.0, 100, 2), (6.0, 100, 2)), Setup(workers=fleet)))
    assert summary.outcomes == {"no_endpoint": 1, "ok": 1}
    assert summary.goodput_ratio == 0.5


def test_a_request_that_fits_no_worker_is_refused() -> None:
    """Longer than the whole cache: an outcome, not a queue that never moves."""
    found = replay(own((0.0, PROFILE.kv_tokens, 10), (0.0, 100, 2)), Setup(workers=workers(1)))
    assert found.outcomes == ["bad_request", "ok"]


def test_a_follower_arrives_its_gap_after_the_end_of_what_it_follows() -> None:
    """Conversations are a closed loop, on one worker and on many."""
    workload = assemble("turns", [Asked(0.0, 500, 20, ()), Asked(0.0, 600, 5, (), follows=0, gap_s=1.5)], 0)
    for fleet in (workers(2), workers(0, 1, 1)):
        found = replay(workload, Setup(workers=fleet))
        assert found.arrival_s[1] == pytest.approx(found.last_s[0] + 1.5)


def test_conversations_hit_what_they_said_before_when_they_stay() -> None:
    """With one worker every further turn hits all full blocks of the turns before."""
    workload = generate(Traffic(kind="sessions", requests=40, turns=4, rate=2.0, prompt_tokens=640))
    found = replay(workload, Setup(workers=workers(1, profile=DEFAULT_PROFILE)))
    said = [
        (workload.prompt_tokens[before] + workload.output_tokens[before] - 1) // 64 * 64
        for before in workload.follows[workload.follows >= 0]
    ]
    assert summarise(found).hit_ratio == pytest.approx(sum(said) / workload.prompt_tokens.sum())


def test_siblings_of_one_instant_follow_the_announced_prefix() -> None:
    """A placement announces its prompt to the turns after it: a burst with one long prefix does not scatter over idle workers."""
    shared = list(range(100))
    workload = assemble("burst", [Asked(0.0, 6_464 + i, 2, shared) for i in range(3)], 100)
    found = replay(workload, Setup(workers=workers(4), policy="target-misses", together=False))
    assert summarise(found).hit_ratio > 0.6


def test_a_mix_has_workers_of_several_speeds_and_roles() -> None:
    """Numbered through within a role, each with its own timing."""
    fleet = mixed_workers("2xpolynomial-reference,1xpolynomial-reference@0.5, 1xqwen3-32b-h100x2/prefill,1xpolynomial-reference@2/decode")
    assert [(spec.id, spec.role.value) for spec in fleet] == [
        ("worker-0", "both"), ("worker-1", "both"), ("worker-2", "both"), ("prefill-0", "prefill"), ("decode-0", "decode"),
    ]  # fmt: skip
    fast, slow = fleet[0].profile, fleet[2].profile
    assert slow.prefill_s(1_000) == pytest.approx(2 * fast.prefill_s(1_000))
    assert slow.decode_s(9, 30_000) == pytest.approx(2 * fast.decode_s(9, 30_000))
    assert slow.transfer_s(100) == fast.transfer_s(100)


@pytest.mark.parametrize(
    ("mix", "said"),
    [
        ("eight", "mix is 'eight'; allowed: COUNTxPROFILE"),
        ("0xpolynomial-reference", "0 workers; allowed: 1..1024"),
        ("2xfast", "profile is 'fast'; allowed: "),
        ("2xpolynomial-reference@0.001", "speed is 0.001; allowed: 0.01..1000"),
        ("2xpolynomial-reference@1.2.3", "speed is '1.2.3'; allowed: 0.01..1000"),
    ],
)
def test_a_mix_that_makes_no_sense_says_why(mix: str, said: str) -> None:
    """The part, and what is allowed."""
    with pytest.raises(ValueError, match=said):
        mixed_workers(mix)


def test_a_wrong_declared_profile_reaches_the_router_only() -> None:
    """Engines compute as they are, whatever they declare."""
    doubled = msgspec.structs.replace(PROFILE, prefill_per_token_s=2 * PROFILE.prefill_per_token_s)
    fleet = (WorkerSpec(id="a", profile=PROFILE, declared=doubled),)
    found = replay(own((0.0, 1_000, 1)), Setup(workers=fleet))
    assert found.first_s[0] == pytest.approx(PROFILE.prefill_s(1_000))


def test_targets_decide_goodput_and_one_token_answers_have_no_itl() -> None:
    """The same replay under harder targets is worth less; an answer of one token can only miss its TTFT."""
    found = replay(own((0.0, 1_000, 1), (10.0, 1_000, 50)), Setup(workers=workers(1), slo=Slo(2.0, 0.05)))
    assert summarise(found).goodput_ratio == 1.0
    assert summarise(found, Slo(2.0, 0.001)).goodput_ratio == 0.5
    assert summarise(found, Slo(0.001, 0.05)).goodput_ratio == 0.0


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"workers": ()}, "workers is empty"),
        ({"workers": workers(1), "report_period_s": 0.0}, "report_period_s is 0.0"),
        ({"workers": workers(1), "routers": 17}, "routers is 17; allowed: 1..16"),
        ({"workers": workers(1), "exchange_s": 1e-4}, "exchange_s is 0.0001; allowed: 0, or 0.001 and more"),
        ({"workers": workers(1), "spare_workers": -1}, "spare_workers is -1; allowed: 0..1024"),
        ({"workers": workers(1), "policy": "best"}, "policy is 'best'"),
        ({"workers": workers(1), "policy": "block-cost:x"}, "policy is 'block-cost:x'"),
        ({"workers": (WorkerSpec(id="a"), WorkerSpec(id="a", role=Role.BOTH))}, "worker ids"),
    ],
)
def test_a_setup_that_cannot_be_simulated_says_why(fields: dict[str, object], said: str) -> None:
    """Field, value, and what is allowed."""
    with pytest.raises(ValueError, match=said):
        replay(own((0.0, 100, 2)), Setup(**fields))  # type: ignore[arg-type]


def test_with_index_lag_the_router_learns_of_a_cache_only_later() -> None:
    """A repeated prompt within the lag, its announcement lapsed, finds nothing; after the lag it does, and 0 is no lag."""
    shared = list(range(50))
    rows = [Asked(0.0, 3_200, 2, shared), Asked(10.0, 3_200, 2, shared), Asked(30.0, 3_200, 2, shared)]
    workload = assemble("again", rows, 50)
    predicted = {}
    for lag_s in (0.0, 20.0):
        cluster = Cluster(workload, Setup(workers=workers(1), index_lag_s=lag_s))
        asked = spy_hits(cluster)
        cluster.run()
        predicted[lag_s] = asked
    assert predicted == {0.0: [0, 50, 50], 20.0: [0, 0, 50]}


def spy_hits(cluster: Cluster) -> list[int]:
    """Blocks that each ask finds at the first worker."""
    found: list[int] = []
    ask = cluster._ask

    def noted(request: int, now: float, excluded: frozenset[str]) -> Ask:
        made = ask(request, now, excluded)
        assert made.hits is not None
        found.append(int(made.hits.chunks.sum()))
        return made

    cluster._ask = noted  # type: ignore[method-assign]
    return found


def test_stale_reports_and_index_change_no_outcome_but_the_choice() -> None:
    """Everything is still served with views that are a second old."""
    workload = generate(TRAFFIC)
    fresh = replay(workload, Setup(workers=workers(3)))
    stale = replay(workload, Setup(workers=workers(3), report_lag_s=1.0, index_lag_s=1.0))
    assert set(stale.outcomes) == {"ok"}
    assert summarise(stale).hit_ratio <= summarise(fresh).hit_ratio


@pytest.mark.parametrize("bookings", list(Bookings))
@pytest.mark.parametrize("fleet", [workers(3), workers(0, 2, 2)], ids=["aggregated", "divided"])
def test_several_routers_serve_everything_and_keep_nothing_booked(bookings: Bookings, fleet: tuple[WorkerSpec, ...]) -> None:
    """One seed, one result; and once all news have come in, no router believes anything is under way."""
    workload = generate(TRAFFIC)
    clusters = [Cluster(workload, Setup(workers=fleet, routers=3, bookings=bookings, exchange_s=0.05)) for _ in range(2)]
    first, second = (cluster.run() for cluster in clusters)
    assert set(first.outcomes) == {"ok"}
    assert summarise(first) == summarise(second)
    clusters[0]._clock.advance(first.span_s + 1.0)
    for scheduler in clusters[0]._routers.schedulers:
        booked = scheduler.beliefs.rows[:, [col.BOOKED, col.STREAMS, col.CONTEXT, col.RUNNING, col.KV_BOOKED]]
        assert not booked.any() or bookings == "mirrored"


def test_what_routers_hear_of_one_another_is_worth_goodput() -> None:
    """Four routers that know only load reports crowd the same workers; with fresh news they do nearly as well as one."""
    workload = generate(msgspec.structs.replace(TRAFFIC, requests=1_500, rate=70.0))
    common = Setup(workers=workers(4), slo=Slo(0.3, 0.03))
    alone = summarise(replay(workload, common)).goodput_ratio
    four = msgspec.structs.replace(common, routers=4)
    blind, heard = (
        summarise(replay(workload, msgspec.structs.replace(four, bookings=one))).goodput_ratio for one in (Bookings.NONE, Bookings.HEARD)
    )
    assert blind < heard - 0.05
    assert heard > alone - 0.02


def test_a_policy_that_does_not_ship_can_be_studied() -> None:
    """What the Setup brings is asked instead of the one it names."""
    workload = generate(TRAFFIC)
    brought = replay(workload, Setup(workers=workers(3), policy="mine", make_policy=RoundRobin))
    assert brought.worker.tolist() == replay(workload, Setup(workers=workers(3), policy="round-robin")).worker.tolist()


def test_a_router_does_not_see_what_another_has_announced() -> None:
    """Siblings at two routers: the second knows the first's prompt only once its pass has begun."""
    shared = list(range(100))
    workload = assemble("pair", [Asked(0.0, 6_464, 2, shared), Asked(0.0, 6_465, 2, shared)], 100)
    for routers, expected in ((1, [0, 100]), (2, [0, 0])):
        seed = next(s for s in range(99) if routers == 1 or len(set(_serving(workload, s))) == 2)
        cluster = Cluster(workload, Setup(workers=workers(2), routers=routers, seed=seed, together=False, turn_order=False))
        asked = spy_hits(cluster)
        cluster.run()
        assert asked == expected


def _serving(workload: Workload, seed: int) -> list[int]:
    return Cluster(workload, Setup(workers=workers(2), routers=2, seed=seed))._routers.serving
