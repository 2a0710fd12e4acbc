"""The autoscaler's question to the simulator: how a sample of requests would fare at another size."""

import numpy as np
import pytest
from penstock_autoscaler.observation import Pool
from penstock_autoscaler.sample import Sample
from penstock_core.endpoint import Role
from penstock_core.profile import DEFAULT_PROFILE
from penstock_core.slo import Slo
from penstock_simulator.cluster import replay
from penstock_simulator.generate import Traffic, generate
from penstock_simulator.report import summarise
from penstock_simulator.setup import Setup, same_workers
from penstock_simulator.what_if import Replayed

SLO = Slo(2.0, 0.025)
TRAFFIC = generate(Traffic(kind="poisson", requests=500, rate=9.0, prompt_tokens=8_000, output_tokens=200))


def pool(name: str, role: Role) -> Pool:
    return Pool(name=name, role=role, desired=1, min_replicas=0, max_replicas=16, profile=DEFAULT_PROFILE, start_s=60.0)


def sampled(hit_ratio: float = 0.0) -> Sample:
    return Sample(
        arrival_s=TRAFFIC.arrival_s,
        prompt_tokens=TRAFFIC.prompt_tokens,
        hit_tokens=(TRAFFIC.prompt_tokens * hit_ratio).astype(np.int64),
        output_tokens=TRAFFIC.output_tokens,
    )


@pytest.mark.parametrize("size", [2, 3, 5])
def test_it_predicts_what_a_replay_of_the_traffic_itself_shows(size: int) -> None:
    """Within three points, from far too few replicas to plenty."""
    found = Replayed().replay({"both": size}, [pool("both", Role.BOTH)], sampled(), SLO, 60.0).attainment
    whole = summarise(replay(TRAFFIC, Setup(workers=same_workers(size), slo=SLO)))
    assert found is not None
    assert found.goodput_ratio == pytest.approx(whole.goodput_ratio, abs=0.03 if size > 2 else 0.25)


def test_hits_are_taken_as_given() -> None:
    """With nine tenths of every prompt cached, half the replicas serve the same."""
    ask = Replayed()
    cold, warm = (ask.replay({"both": 2}, [pool("both", Role.BOTH)], sampled(share), SLO, 60.0).attainment for share in (0.0, 0.9))
    assert cold is not None
    assert warm is not None
    assert warm.goodput_ratio is not None
    assert cold.goodput_ratio is not None
    assert warm.goodput_ratio > max(0.98, cold.goodput_ratio)


def test_dedicated_pools_need_both_roles() -> None:
    """Without a replica that decodes nothing could be served, so nothing is answered, at no cost."""
    pools = [pool("p", Role.PREFILL), pool("d", Role.DECODE)]
    assert Replayed().replay({"p": 3, "d": 2}, pools, sampled(), SLO, 60.0).attainment is not None
    answer = Replayed().replay({"p": 3, "d": 0}, pools, sampled(), SLO, 60.0)
    assert (answer.attainment, answer.spent_s) == (None, 0.0)


def test_it_gives_up_when_its_budget_is_spent() -> None:
    """And says what it spent."""
    answer = Replayed().replay({"both": 3}, [pool("both", Role.BOTH)], sampled(), SLO, 1e-6)
    assert answer.attainment is None
    assert 0.0 < answer.spent_s < 30.0
