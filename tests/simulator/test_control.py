"""A controller in a replay: what it is shown, and that what it asks for comes true without anything being lost."""

from collections.abc import Callable, Sequence

import msgspec
import numpy as np
import pytest
from penstock_autoscaler.observation import Phase
from penstock_core.endpoint import Role
from penstock_simulator.changes import Change, Drain, Start, Switch, View
from penstock_simulator.cluster import Cluster, replay
from penstock_simulator.generate import Traffic, generate
from penstock_simulator.report import summarise
from penstock_simulator.setup import Replay, Setup, same_workers

TRAFFIC = Traffic(kind="shared-prefix", requests=300, rate=25.0, prompt_tokens=1_500, output_tokens=80, groups=6, prefix_tokens=1_024)


class Script:
    """Asks for what is written for each second, and keeps what it was shown."""

    def __init__(self, changes: dict[int, Sequence[Change]], period_s: float = 1.0) -> None:
        self.changes, self.period_s = changes, period_s
        self.views: list[View] = []
        self.look: Callable[[], int] = lambda: 0
        self.looked: list[int] = []

    def tick(self, view: View) -> Sequence[Change]:
        self.views.append(view)
        self.looked.append(self.look())
        return self.changes.get(len(self.views), ())

    def at(self, second: int) -> dict[str, Phase]:
        return {one.id: one.phase for one in self.views[second - 1].workers}


def run(changes: dict[int, Sequence[Change]], policy: str = "round-robin", **fleet: int) -> tuple[Replay, Script]:
    script = Script(changes)
    setup = Setup(workers=same_workers(**(fleet or {"count": 2})), policy=policy, make_controller=lambda: script, spare_workers=1)
    return replay(generate(TRAFFIC), setup), script


def test_it_is_shown_every_arrival_and_every_end_once() -> None:
    """With the figures that the report has; what came after the last tick it has not seen."""
    found, script = run({})
    ended = [view.traffic.ended for view in script.views]
    seen = {
        float(arrival): (ttft, tpot) for one in ended for arrival, ttft, tpot in zip(one.arrival_s, one.ttft_s, one.tpot_s, strict=True)
    }
    assert all(view.traffic.length_s == 1.0 for view in script.views)
    arrivals = np.concatenate([view.traffic.arrival_s for view in script.views])
    last = script.views[-1].now_s
    assert arrivals.tolist() == found.arrival_s[found.arrival_s <= last].tolist()
    assert sum(len(one.ttft_s) for one in ended) == len(seen) == (found.last_s <= last).sum()
    for i in np.flatnonzero(found.last_s <= last):
        ttft, tpot = seen[float(found.arrival_s[i])]
        assert ttft == found.first_s[i] - found.arrival_s[i]
        gaps = found.workload.output_tokens[i] - 1
        assert np.isnan(tpot) if gaps == 0 else tpot == pytest.approx((found.last_s[i] - found.first_s[i]) / gaps)
    assert sum(int(one.hit_tokens.sum()) for one in ended) > 0


def test_a_started_worker_is_paid_at_once_and_used_when_it_is_ready() -> None:
    """Asked for in second 3, ready in second 5."""
    found, script = run({3: [Start(Role.BOTH, 2.0)]})
    assert script.at(3).keys() == {"worker-0", "worker-1"}
    assert [script.at(second)["both-new-1"] for second in (4, 6)] == [Phase.STARTING, Phase.READY]
    assert found.arrival_s[found.worker == 2].min() > 5.0
    assert found.worker_s[2] == pytest.approx(found.span_s - 3.0)


def test_a_drained_worker_finishes_what_it_has_and_costs_no_more() -> None:
    """Nothing is cut; it is shown draining, then not at all."""
    found, script = run({4: [Drain("worker-1")]})
    assert set(found.outcomes) == {"ok"}
    assert script.at(5).get("worker-1", Phase.DRAINING) is Phase.DRAINING
    assert "worker-1" not in script.at(len(script.views))
    assert found.arrival_s[found.worker == 1].max() <= 4.0
    assert 4.0 < found.worker_s[1] < found.span_s - 2.0


def test_a_worker_that_is_drained_while_it_starts_is_gone_at_once() -> None:
    """It never served, and is paid for what it took."""
    found, script = run({2: [Start(Role.BOTH, 60.0)], 5: [Drain("both-new-1")]})
    assert "both-new-1" not in script.at(6)
    assert found.worker_s[2] == pytest.approx(3.0)
    assert not (found.worker == 2).any()


def test_the_place_of_a_worker_that_left_is_taken_by_another_with_an_empty_cache() -> None:
    """One place, two lives: both are paid, and what the first had cached is not hit by the second."""
    script = Script({1: [Start(Role.BOTH, 0.0)], 5: [Drain("both-new-1")], 8: [Start(Role.BOTH, 0.5)]})
    setup = Setup(workers=same_workers(1), policy="round-robin", make_controller=lambda: script, spare_workers=1)
    cluster = Cluster(generate(TRAFFIC), setup)
    script.look = lambda: int((cluster._fleet.resident[:, 1] > 0).sum())
    found = cluster.run()
    assert set(found.outcomes) == {"ok"}
    assert "both-new-2" in script.at(9)
    assert "both-new-1" not in script.at(8)
    blocks = script.looked
    assert 0 < blocks[8] < blocks[7] == blocks[6]
    assert 4.0 + found.span_s - 8.0 - 0.1 < found.worker_s[1] < found.span_s - 2.0


def test_a_started_worker_declares_what_the_others_declare() -> None:
    """A wrong profile stays wrong when the fleet grows."""
    fleet = tuple(msgspec.structs.replace(one, declared=one.profile.at_speed(1.5)) for one in same_workers(1))
    script = Script({1: [Start(Role.BOTH, 0.0)]})
    cluster = Cluster(generate(TRAFFIC), Setup(workers=fleet, make_controller=lambda: script, spare_workers=1))
    cluster.run()
    declared = {spec.id: spec.declared for spec in cluster._members.specs}
    assert declared["both-new-1"] == fleet[0].declared


@pytest.mark.parametrize(("before", "after"), [("prefill-1", Role.DECODE), ("decode-1", Role.PREFILL), ("prefill-1", Role.BOTH)])
def test_a_worker_changes_its_role_when_it_is_empty(before: str, after: Role) -> None:
    """All is served, and it is used in its new role from then on, without being paid twice."""
    found, script = run({4: [Switch(before, after)]}, policy="target-misses", prefill=2, decode=2)
    assert set(found.outcomes) == {"ok"}
    roles = [{one.id: one.role for one in view.workers}[before] for view in script.views]
    assert roles[3] is Role(before.split("-")[0])
    assert roles[-1] is after
    changed = [spec.id for spec in found.setup.workers].index(before)
    if after.decodes:
        assert found.arrival_s[found.worker == changed].min() > 3.0
    else:
        assert found.arrival_s[found.worker == changed].max() < 6.0
    assert found.worker_s[changed] == pytest.approx(found.span_s)


def test_a_controller_that_changes_nothing_changes_nothing() -> None:
    """The same replay as without one, whatever the policy."""
    plain = replay(generate(TRAFFIC), Setup(workers=same_workers(2), policy="target-misses"))
    assert summarise(run({}, policy="target-misses")[0]) == summarise(plain)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ([Start(Role.BOTH, 1.0)] * 2, "3 workers are there; allowed: at most 3"),
        ([Drain("nobody")], "worker is 'nobody'; allowed: worker-0, worker-1"),
        ([Switch("nobody", Role.DECODE)], "worker is 'nobody'"),
    ],
)
def test_what_cannot_be_done_says_why(changes: Sequence[Change], said: str) -> None:
    """Field, value, and what is allowed."""
    with pytest.raises(ValueError, match=said):
        run({1: changes})


def test_a_controller_without_a_period_is_refused() -> None:
    """It would be asked for ever in one instant."""
    with pytest.raises(ValueError, match=r"period_s of the controller is 0\.0; allowed: more than 0"):
        Cluster(generate(TRAFFIC), Setup(workers=same_workers(1), make_controller=lambda: Script({}, 0.0)))
