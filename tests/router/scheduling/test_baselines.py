"""Block cost by hand: what is queued, what is held, what is in work, and the scale between them."""

import re
from pathlib import Path
from random import Random

import numpy as np
import pytest
from penstock_core.endpoint import Endpoint, Role, WorkerRecord
from penstock_core.profile import DEFAULT_PROFILE
from penstock_process.settings import ConfigError
from penstock_router.baselines import BlockCost
from penstock_router.config import RouterConfig
from penstock_router.policies import policy_named
from penstock_router.policy_names import POLICY_NAMES
from penstock_router.scheduling import Ask, Booking, Scheduler


class Holders:
    """Worker 1 holds `chunks` leading blocks."""

    def __init__(self, chunks: int) -> None:
        self.slots = np.array([1], np.uint16)
        self.chunks = np.array([chunks], np.int32)


def scheduler(scale: float, roles: tuple[Role, ...] = (Role.BOTH, Role.BOTH)) -> Scheduler:
    made = Scheduler(BlockCost(scale), rng=Random(1))
    records = [
        WorkerRecord(
            id=f"w{slot}",
            url="http://127.0.0.1:1",
            role=role,
            pool="p",
            model="m",
            epoch=slot,
            profile=DEFAULT_PROFILE,
            kv_total_tokens=DEFAULT_PROFILE.kv_tokens,
            block_tokens=64,
            max_model_tokens=131_072,
        )
        for slot, role in enumerate(roles)
    ]
    made.set_endpoints([Endpoint(record, slot=slot) for slot, record in enumerate(records)], 0.0)
    return made


def placed(made: Scheduler, tokens: int, now: float, hit_blocks: int = 0, explain: bool = False) -> Booking:
    ask = Ask(prompt_tokens=tokens, hits=Holders(hit_blocks) if hit_blocks else None, explain=explain)
    booking = made.place([ask], now)[0]
    assert booking is not None
    return booking


def test_the_cost_is_scale_times_prompt_blocks_to_compute_plus_blocks_in_work() -> None:
    """6,400 tokens in work and queued at the holder against an idle other: 2 · (100 + 100 − 50) + 100, and 2 · 100."""
    made = scheduler(2.0)
    first = placed(made, 6_400, 0.0, hit_blocks=50, explain=True)
    costs = {one.decode: one.cost for one in first.placement.candidates}
    assert costs == {"w0": 200.0, "w1": 100.0}
    assert first.placement.decode is not None
    assert first.placement.decode.id == "w1"
    again = placed(made, 6_400, 0.0, hit_blocks=50, explain=True)
    assert {one.decode: one.cost for one in again.placement.candidates} == {"w0": 200.0, "w1": 2 * (50.0 + 50.0) + 100.0}


def test_a_first_token_takes_the_prompt_out_of_the_queue_and_leaves_it_in_work() -> None:
    """And the end of the request takes it out of work."""
    made = scheduler(1.0)
    booking = placed(made, 6_400, 0.0, hit_blocks=1)
    booking.first_token(0.5)
    looked = placed(made, 640, 1.0, explain=True)
    costs = {one.decode: one.cost for one in looked.placement.candidates}
    assert costs == {"w0": 10.0, "w1": 110.0}
    looked.done(1.0)
    booking.done(2.0, 300)
    assert {one.cost for one in placed(made, 640, 2.0, explain=True).placement.candidates} == {10.0}


def test_a_larger_scale_weighs_hits_more() -> None:
    """The holder is busy: at scale 1 the idle one wins, at 32 the hit does."""
    chosen = []
    for scale in (1.0, 32.0):
        made = scheduler(scale)
        placed(made, 12_800, 0.0, hit_blocks=1).first_token(0.1)
        booking = placed(made, 6_400, 1.0, hit_blocks=90)
        assert booking.placement.decode is not None
        chosen.append(booking.placement.decode.id)
    assert chosen == ["w0", "w1"]


def test_after_a_prefill_elsewhere_the_decode_endpoint_with_the_fewest_blocks_takes_over() -> None:
    """Outputs do not count, prompts do."""
    made = scheduler(1.0, (Role.PREFILL, Role.DECODE, Role.DECODE))
    chosen = []
    for tokens in (6_400, 640, 640):
        booking = placed(made, tokens, 0.0)
        booking.prefilled(0.1)
        decode = booking.bind_decode(0.1)
        assert decode is not None
        booking.first_token(0.2)
        chosen.append(decode.id)
    assert chosen[1] == chosen[2] != chosen[0]


@pytest.mark.parametrize("scale", [-1.0, 1e7, float("nan")])
def test_a_scale_out_of_range_is_refused(scale: float) -> None:
    """Value and range."""
    with pytest.raises(ValueError, match="block-cost's scale is"):
        BlockCost(scale)


def test_every_name_gives_the_policy_of_that_name_and_block_cost_takes_a_scale() -> None:
    """`block-cost` alone is at scale 1."""
    for name in POLICY_NAMES:
        assert policy_named(name).name.partition(":")[0] == name
    assert [policy_named(name).name for name in ("block-cost", "block-cost:32", "block-cost:0.5")] == [
        "block-cost:1",
        "block-cost:32",
        "block-cost:0.5",
    ]


@pytest.mark.parametrize("name", ["best", "", "random:2", "target-misses:", "block-costs", ":3"])
def test_an_unknown_name_is_told_all_that_are_allowed(name: str) -> None:
    """The value, and the list."""
    with pytest.raises(ValueError, match=re.escape(f"policy is {name!r}; allowed: target-misses, round-robin,")) as refused:
        policy_named(name)
    assert str(refused.value).endswith("conductor, block-cost[:SCALE]")


@pytest.mark.parametrize("scale", ["x", "", "-1", "nan", "inf", "1e7", "1:2"])
def test_a_scale_that_is_not_allowed_is_refused_by_name_and_by_the_configuration(scale: str) -> None:
    """The value and the range, in both."""
    said = re.escape(f"policy is 'block-cost:{scale}'; allowed: block-cost:SCALE with a SCALE of 0..1,000,000")
    with pytest.raises(ValueError, match=said):
        policy_named(f"block-cost:{scale}")
    with pytest.raises(ConfigError, match=said):
        RouterConfig(policy=f"block-cost:{scale}")
    assert RouterConfig(policy="block-cost:32").policy == "block-cost:32"


@pytest.mark.parametrize("page", ["README.md", "docs/policies.md", "docs/configuration.md"])
def test_the_pages_name_every_policy(page: str) -> None:
    """A policy that nobody can find is none."""
    text = (Path(__file__).parents[3] / page).read_text(encoding="utf-8")
    assert [name for name in POLICY_NAMES if name not in text] == []
