"""`penstock simulate` from the outside: JSON, table, pictures, and what it says of bad input."""

import re
import sys
from pathlib import Path

import msgspec
import pytest
from penstock_cli.main import app, main
from typer.testing import CliRunner

MADE_UP = ["simulate", "--generate", "shared-prefix:requests=120,rate=20,prompt_tokens=800,output_tokens=40", "--workers", "2"]


def simulated(*arguments: str) -> str:
    done = CliRunner().invoke(app, [*MADE_UP, *arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_json_has_every_figure_of_every_compared_policy() -> None:
    """One replay a policy, in the order asked for."""
    found = msgspec.json.decode(simulated("--compare", "round-robin,target-misses,block-cost:8", "--json"))["replays"]
    assert [one["policy"] for one in found] == ["round-robin", "target-misses", "block-cost:8"]
    assert all(one["outcomes"] == {"ok": 120} and 0.0 <= one["goodput_ratio"] <= 1.0 for one in found)
    assert {"ttft_s", "itl_s", "tpot_s", "hit_ratio", "worker_s", "seed", "slo"} <= found[0].keys()


def test_the_table_names_policy_and_fleet() -> None:
    """Divided fleets are written as 1P2D."""
    shown = simulated("--workers", "0", "--prefill", "1", "--decode", "2", "--policy", "least-request")
    assert "least-request" in shown
    assert "1P2D" in shown


def test_a_mix_of_fast_and_slow_workers_is_slower_than_fast_ones_alone() -> None:
    """The second kind of worker really computes at its speed."""
    mixes = ("2xpolynomial-reference", "1xpolynomial-reference,1xpolynomial-reference@0.2")
    found = [
        msgspec.json.decode(simulated("--workers", "0", "--mix", mix, "--policy", "round-robin", "--json"))["replays"][0] for mix in mixes
    ]
    assert found[1]["ttft_s"]["mean"] > 2 * found[0]["ttft_s"]["mean"]


def test_several_routers_are_simulated_as_asked() -> None:
    """Four of them that hear nothing of one another place otherwise than one; all is served."""
    alone, four = (msgspec.json.decode(simulated(*more, "--json"))["replays"][0] for more in ([], ["--routers", "4", "--bookings", "none"]))
    assert four["outcomes"] == alone["outcomes"] == {"ok": 120}
    assert four["ttft_s"] != alone["ttft_s"]


def test_a_trace_file_is_replayed_faster_and_spread(tmp_path: Path) -> None:
    """Twice the speed, half the span."""
    rows = [{"timestamp": 3_000 * (i // 4), "input_length": 600, "output_length": 20, "hash_ids": [0, i]} for i in range(40)]
    (tmp_path / "t.jsonl").write_bytes(b"\n".join(msgspec.json.encode(row) for row in rows))
    spans = []
    for speed in ("1", "2"):
        options = ["simulate", "--trace", str(tmp_path / "t.jsonl"), "--speedup", speed, "--arrivals", "spread", "--json"]
        done = CliRunner().invoke(app, options, catch_exceptions=False)
        spans.append(msgspec.json.decode(done.stdout)["replays"][0]["span_s"])
    assert spans[0] / spans[1] == pytest.approx(2.0, rel=0.05)


@pytest.mark.parametrize("form", ["png", "svg"])
def test_pictures_are_written_in_the_format_asked_for(tmp_path: Path, form: str) -> None:
    """Latencies, goodput, and one of the workers for each replay."""
    pytest.importorskip("matplotlib")
    simulated("--compare", "round-robin,target-misses", "--plots", str(tmp_path / "out"), "--plot-format", form, "--json")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {f"{name}.{form}" for name in ("latencies", "goodput", "workers-round-robin-0", "workers-target-misses-1")}
    begins = b"\x89PNG" if form == "png" else b"<?xml"
    assert all((tmp_path / "out" / name).read_bytes().startswith(begins) for name in names)


def test_an_autoscalers_sizes_are_drawn_too(tmp_path: Path) -> None:
    """Below the workers, with what is ready and what is desired; what has no hits is drawn from 0 up, and one load as bars."""
    pytest.importorskip("matplotlib")
    made_up = ["--generate", "poisson:requests=200,rate=4,prompt_tokens=800,output_tokens=20"]
    simulated(*made_up, "--autoscale", "--start-s", "2", "--plots", str(tmp_path), "--plot-format", "svg", "--json")
    drawn = {path.stem: path.read_text() for path in tmp_path.iterdir()}
    workers = drawn["workers-target-misses-0"]
    assert "both, ready" in workers
    assert "both, desired" in workers
    assert "−0.04" not in workers
    assert "target-misses" in drawn["goodput"]


def test_several_loads_are_several_replays_of_each_policy() -> None:
    """Policy by policy, in the order of the loads, each with its rate."""
    found = msgspec.json.decode(simulated("--compare", "round-robin,target-misses", "--speedup", "1,4", "--json"))["replays"]
    assert [one["policy"] for one in found] == ["round-robin"] * 2 + ["target-misses"] * 2
    assert found[1]["rate"] / found[0]["rate"] == pytest.approx(4.0)


def said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    monkeypatch.setattr(sys, "argv", ["penstock", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    return capsys.readouterr().err


def test_pictures_without_matplotlib_name_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The extra is what a user installs."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "pip install 'penstock[plots]'" in said(monkeypatch, capsys, *MADE_UP, "--plots", str(tmp_path))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["simulate"], "--trace FILE or --generate KIND"),
        (["simulate", "--trace", "nowhere.jsonl"], "trace is 'nowhere.jsonl'"),
        ([*MADE_UP, "--policy", "best"], "policy is 'best'; allowed: target-misses"),
        ([*MADE_UP, "--profile", "fast"], "profile is 'fast'; allowed: "),
        ([*MADE_UP, "--speedup", "0"], "speedup is 0.0; allowed: "),
        ([*MADE_UP, "--speedup", "1,fast"], "speedup is '1,fast'; allowed: "),
        ([*MADE_UP, "--workers", "0", "--prefill", "2"], "--decode 1 or more"),
        ([*MADE_UP, "--mix", "2xpolynomial-reference"], "beside --workers, --prefill or --decode"),
        ([*MADE_UP, "--workers", "0", "--mix", "fast"], "mix is 'fast'; allowed: COUNTxPROFILE"),
        ([*MADE_UP, "--autoscale", "--min", "5", "--max", "2"], "min is 5; allowed: 1..2, the value of --max"),
        ([*MADE_UP, "--goal", "0.9", "--max", "3"], "--max, --goal: of no use without the autoscaler; allowed: with --autoscale"),
        ([*MADE_UP, "--transfer-gb-per-s", "-3"], "transfer-gb-per-s is -3.0"),
    ],
)
def test_bad_input_names_field_value_and_what_is_allowed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    """One line, no traceback."""
    error = said(monkeypatch, capsys, *arguments)
    assert words in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("option", "value", "allowed"),
    [
        ("--routers", "0", "1 or more"),
        ("--requests", "-1", "0 or more"),
        ("--slo-ttft-ms", "-1", "1 or more"),
        ("--slo-itl-ms", "0", "0.1 or more"),
        ("--report-lag-ms", "-1", "0 or more"),
        ("--exchange-ms", "-1", "0 or more"),
        ("--declared-speed", "0", "0.01 or more"),
        ("--routers", "17", "up to 16"),
        ("--declared-speed", "fast", "valid number"),
    ],
)
def test_a_number_out_of_its_range_is_named_as_it_was_given(option: str, value: str, allowed: str) -> None:
    """The user's option, the user's value in the user's unit, and the range."""
    done = CliRunner().invoke(app, [*MADE_UP, option, value])
    assert done.exit_code == 2
    words = " ".join(done.output.replace("│", " ").split())
    assert f"'{option}': {value} is given; " in words
    assert allowed in words


def test_a_wrong_profile_is_found_out_by_the_autoscaler_too() -> None:
    """Since when, and by how much, is said below the sizes."""
    options = ["--generate", "poisson:requests=900,rate=6,prompt_tokens=1500,output_tokens=60", "--workers", "2", "--max", "3"]
    said = simulated(*options, "--declared-speed", "2", "--autoscale", "--start-s", "2")
    found = re.search(r"From (\d+) s on both was sized by what routers measured: prefill ×(\S+), decode ×(\S+) of what", said)
    assert found is not None, said
    assert float(found[2]) == pytest.approx(2.0, rel=0.1)
    assert "routers measured" not in simulated(*options, "--autoscale", "--start-s", "2")


def test_the_autoscaler_sizes_the_simulated_fleet_and_says_why() -> None:
    """Its decisions are in the JSON, one list a replay, and its sizes in the table's timeline; more than one kind of worker is refused."""
    rising = ["simulate", "--generate", "ramp:requests=500,rate=12,peak=4,prompt_tokens=3000,output_tokens=100", "--workers", "1"]
    options = [*rising, "--slo-itl-ms", "15", "--autoscale", "--start-s", "2", "--max", "5"]
    done = CliRunner().invoke(app, [*options, "--speedup", "1,1.5", "--json"], catch_exceptions=False)
    found = msgspec.json.decode(done.stdout)
    assert [one["outcomes"] for one in found["replays"]] == [{"ok": 500}] * 2
    assert len(found["decisions"]) == 2
    sizes = [one["desired"]["both"] for one in found["decisions"][1]]
    assert 1 < max(sizes) <= 5
    shown = CliRunner().invoke(app, options, catch_exceptions=False).stdout
    assert "requests/s: sizes" in shown
    with pytest.raises(ValueError, match="--autoscale with 2 kinds of workers; allowed: one"):
        mixed = ["--workers", "0", "--mix", "1xpolynomial-reference,1xpolynomial-reference@0.5"]
        CliRunner().invoke(app, [*rising, *mixed, "--autoscale"], catch_exceptions=False)
