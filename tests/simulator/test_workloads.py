"""Reading and making traffic: prefix identity, arrivals, errors with line and field."""

from pathlib import Path

import msgspec
import numpy as np
import pytest
import zstandard
from penstock_simulator.generate import KINDS, Traffic, generate, parse_traffic
from penstock_simulator.traces import read_trace
from penstock_simulator.workload import Asked, Workload, assemble

ROWS = [
    {"timestamp": 3000, "input_length": 1100, "output_length": 100, "hash_ids": [7, 8, 9]},
    {"timestamp": 0, "input_length": 1024, "output_length": 10, "hash_ids": [7, 8]},
    {"timestamp": 3000, "input_length": 1024, "output_length": 0, "hash_ids": [5, 8]},
]


def chain(workload: Workload, request: int) -> list[int]:
    return workload.chain[workload.offsets[request] : workload.offsets[request + 1]].tolist()


def jsonl(rows: list[dict[str, object]]) -> bytes:
    return b"\n".join(msgspec.json.encode(row) for row in rows)


def test_hash_ids_become_blocks_that_are_equal_exactly_as_long_as_the_prompts_are(tmp_path: Path) -> None:
    """Eight blocks a hash id; an equal id after an unequal one is another block; the open end and the answer are the request's own."""
    (tmp_path / "t.jsonl").write_bytes(jsonl(ROWS))
    workload = read_trace(tmp_path / "t.jsonl")
    assert workload.arrival_s.tolist() == [0.0, 3.0, 3.0]
    assert workload.output_tokens.tolist() == [10, 100, 1]
    first, longer, other = (chain(workload, i) for i in range(3))
    assert [len(one) for one in (first, longer, other)] == [17, 19, 17]
    assert longer[:16] == first[:16]
    assert not set(longer[17:]) & set(first)
    assert not set(other) & set(first)
    assert workload.distinct_blocks == len({*first, *longer, *other}) + 7  # the third id of the longer one has one full block only


def test_compressed_traces_read_alike(tmp_path: Path) -> None:
    """`.zst` is looked through."""
    (tmp_path / "t.jsonl").write_bytes(jsonl(ROWS))
    (tmp_path / "t.jsonl.zst").write_bytes(zstandard.compress(jsonl(ROWS)))
    plain, packed = read_trace(tmp_path / "t.jsonl"), read_trace(tmp_path / "t.jsonl.zst")
    assert plain.chain.tolist() == packed.chain.tolist()


def test_azure_rows_have_arrivals_and_lengths_and_share_nothing(tmp_path: Path) -> None:
    """Seven digits of a second, and no content."""
    (tmp_path / "a.csv").write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:50.9951690,396,109\n"
    )
    workload = read_trace(tmp_path / "a.csv")
    assert workload.arrival_s == pytest.approx([0.0, 4.314579])
    assert workload.prompt_tokens.tolist() == [374, 396]
    assert len(set(workload.chain.tolist())) == len(workload.chain)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("t.txt", b"", "trace is 't.txt'"),
        ("t.jsonl", b'{"timestamp": 0}', "t.jsonl, line 1: .*input_length"),
        ("t.jsonl", b'\n{"timestamp": 0, "input_length": 2000, "output_length": 1, "hash_ids": [1]}', "line 2: 1 hash_ids"),
        ("t.csv", b"TIMESTAMP,ContextTokens,GeneratedTokens\nnever,1,2", "t.csv, line 2"),
        ("t.csv", b"a,b\n1,2", "t.csv, line 2"),
    ],
)
def test_a_bad_trace_names_file_and_line(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    """What is wrong, where, and what is allowed."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=said):
        read_trace(tmp_path / name)


def test_spread_arrivals_fill_the_quantum_in_order() -> None:
    """Three requests of one instant come at its beginning, its third and its two thirds."""
    workload = assemble("q", [Asked(now, 10, 1, ()) for now in (0.0, 0.0, 0.0, 3.0, 3.0, 9.0)], 0)
    assert workload.spread().arrival_s == pytest.approx([0.0, 1.0, 2.0, 3.0, 5.25, 9.0])
    assert workload.at_speed(2.0).arrival_s.tolist() == [0.0, 0.0, 0.0, 1.5, 1.5, 4.5]
    with pytest.raises(ValueError, match="speedup is 0"):
        workload.at_speed(0.0)


@pytest.mark.parametrize("kind", KINDS)
def test_made_up_traffic_has_the_rate_and_lengths_asked_for_and_one_seed_one_result(kind: str) -> None:
    """Rate and mean output within sampling error; another seed is other traffic."""
    traffic = Traffic(kind=kind, requests=3_000, rate=10.0, output_tokens=200, cv=2.0, seed=5)
    workload = generate(traffic)
    assert workload.requests == 3_000
    assert workload.output_tokens.mean() == pytest.approx(200, rel=0.1)
    assert 3_000 / workload.arrival_s.max() == pytest.approx(10.0, rel=0.15)
    assert generate(traffic).chain.tolist() == workload.chain.tolist()
    assert generate(msgspec.structs.replace(traffic, seed=6)).output_tokens.tolist() != workload.output_tokens.tolist()
    assert workload.chain.max() == workload.distinct_blocks - 1


def test_bursts_are_as_uneven_as_asked() -> None:
    """The gaps' coefficient of variation is cv."""
    gaps = np.diff(generate(Traffic(kind="bursts", requests=50_000, cv=4.0)).arrival_s)
    assert gaps.std() / gaps.mean() == pytest.approx(4.0, rel=0.1)


def test_a_ramp_is_busiest_in_the_middle() -> None:
    """Three times the rate of the ends."""
    times = generate(Traffic(kind="ramp", requests=20_000, rate=10.0, peak=3.0)).arrival_s
    counts, _ = np.histogram(times, bins=10, range=(0.0, 2_000.0))
    assert counts[4:6].mean() / counts[[0, 9]].mean() == pytest.approx(2.8 / 1.2, rel=0.1)


def test_a_turn_begins_with_all_that_was_said_before() -> None:
    """Full blocks of prompt and answer come again in the next prompt, agents' first blocks are shared among loops."""
    workload = generate(Traffic(kind="agents", requests=60, turns=5, groups=2, prefix_tokens=640))
    for request in np.flatnonzero(workload.follows >= 0).tolist():
        before = int(workload.follows[request])
        said = int(workload.prompt_tokens[before] + workload.output_tokens[before]) // 64
        assert chain(workload, request)[:said] == chain(workload, before)[:said]
        assert workload.prompt_tokens[request] > workload.prompt_tokens[before] + workload.output_tokens[before]
    assert {tuple(chain(workload, i)[:10]) for i in range(60)} == {tuple(range(10)), tuple(range(10, 20))}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nope", "generate is 'nope'; allowed: poisson"),
        ("poisson:rate", "'rate'; allowed for poisson: requests=2000, rate=8, .*seed=0 .with their defaults., commas between"),
        ("poisson:peak=3", "'peak=3'; allowed for poisson: requests="),
        ("ramp:cv=3", "allowed for ramp: .*, peak=3 "),
        ("poisson:rate=x", "generate: rate is 'x'; allowed: 0.001 to 1000000 requests a second"),
        ("poisson:requests=2.5", "generate: requests is '2.5'; allowed: a whole number, 1 to 10000000"),
        ("ramp:peak=0.5", "peak is 0.5"),
    ],
)
def test_a_wrong_kind_of_traffic_says_what_is_allowed(text: str, said: str) -> None:
    """Field, value, range."""
    with pytest.raises(ValueError, match=said):
        parse_traffic(text)


def test_a_request_cannot_follow_a_later_one_and_has_at_least_a_token() -> None:
    """Bad rows are named by number."""
    with pytest.raises(ValueError, match="request 0 of x follows request 1"):
        assemble("x", [Asked(0.0, 1, 1, (), follows=1)], 0)
    with pytest.raises(ValueError, match="request 0 of x has 0 prompt"):
        assemble("x", [Asked(0.0, 0, 1, ())], 0)
