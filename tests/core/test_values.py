"""Targets, KV batches, facts and outcomes: the small values that cross process borders."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from penstock_core.endpoint import Role, WorkerRecord
from penstock_core.errors import Outcome
from penstock_core.facts import Facts, decode_facts, encode_facts
from penstock_core.kv_events import KvState, decode_state, encode_state, pack_keys, unpack_keys
from penstock_core.profile import DEFAULT_PROFILE
from penstock_core.slo import Attainment, Slo, attainment

counts = st.integers(0, 2**40)
keys = st.lists(st.integers(0, 2**64 - 1), max_size=50).map(lambda found: np.array(found, dtype=np.uint64))


@given(st.builds(Facts, counts, counts, counts, counts, counts, counts, counts, counts, st.text("abc0-9.", max_size=8)))
def test_facts_survive_the_header(facts: Facts) -> None:
    """What a worker writes a router reads."""
    assert decode_facts(encode_facts(facts)) == facts


@pytest.mark.parametrize("value", [None, b"", b"v=2;hit_chunks=1", b"v=1;hit_chunks=x", b"v=1;hit_tokens=1\xff", b"hello"])
def test_facts_that_cannot_be_read_are_no_facts(value: bytes | None) -> None:
    """A foreign or broken header is a missing hint, never an error."""
    assert decode_facts(value) is None


def test_unknown_facts_are_passed_over() -> None:
    """A newer worker may say more."""
    assert decode_facts(b"v=1;hit_chunks=3;colour=red") == Facts(hit_chunks=3)


@given(keys, st.integers(0, 2**64 - 1), st.integers(0, 2**63))
def test_kv_state_survives_the_wire(held: np.ndarray, epoch: int, sequence: int) -> None:
    """Epoch, sequence and every key come back."""
    state = decode_state(encode_state(KvState(epoch, sequence, held)))
    assert (state.epoch, state.sequence) == (epoch, sequence)
    assert np.array_equal(state.keys, held)
    assert np.array_equal(unpack_keys(pack_keys(held)), held)


@pytest.mark.parametrize("wire", [b"", b"\x02" + bytes(16), b"\x01" + bytes(15), b"\x01" + bytes(16) + b"abc"])
def test_a_broken_kv_state_is_refused(wire: bytes) -> None:
    """Another version, a cut-off header or half a key."""
    with pytest.raises(ValueError, match="allowed"):
        decode_state(wire)


def test_attainment_counts_each_target_and_adds_up() -> None:
    """Shed requests count as misses; answers of one token pass the ITL target; windows merge."""
    slo = Slo(ttft_s=1.0, itl_s=0.02)
    window = attainment(slo, [(0.5, 0.01), (0.5, 0.03), (2.0, None), None])
    assert window == Attainment(requests=4, ttft_met=2, itl_met=2, both_met=1)
    assert (window + window).goodput_ratio == 0.25
    assert Attainment().goodput_ratio is None


@pytest.mark.parametrize("bad", [{"ttft_s": 0.0}, {"itl_s": -1.0}, {"ttft_s": float("nan")}])
def test_absurd_targets_are_refused(bad: dict[str, float]) -> None:
    """The message names the field and what is allowed."""
    with pytest.raises(ValueError, match=next(iter(bad)) + r".*allowed"):
        Slo(**bad)


def test_every_outcome_has_a_status() -> None:
    """One enum, one status each."""
    assert {outcome.status for outcome in Outcome} == {200, 400, 401, 403, 404, 413, 429, 499, 502, 503, 504}


def test_roles_say_what_they_do() -> None:
    """`both` does both."""
    assert [role.prefills_for_others for role in Role] == [True, False, True]
    assert [role.decodes for role in Role] == [False, True, True]


def test_a_worker_url_must_be_http() -> None:
    """The record refuses what no client could reach."""
    with pytest.raises(ValueError, match="url is 'ftp://x'"):
        WorkerRecord(
            id="a",
            url="ftp://x",
            role=Role.BOTH,
            pool="p",
            model="m",
            epoch=1,
            profile=DEFAULT_PROFILE,
            kv_total_tokens=1,
            block_tokens=64,
            max_model_tokens=1,
        )
