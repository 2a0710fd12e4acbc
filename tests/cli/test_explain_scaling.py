"""What `penstock explain scaling` and `status` say of the autoscaler's decisions, from a router's answer and on an API server's proxy."""

import io

import msgspec
import pytest
from penstock_autoscaler.decision import Decision, Reason
from penstock_autoscaler.observation import Start
from penstock_autoscaler.told import PoolThen, Told
from penstock_cli.explain_scaling import explained
from penstock_cli.status import add_scaling
from penstock_core.errors import PenstockError
from penstock_core.profile_fit import PoolFit
from rich.console import Console


def told(at_s, before, after, reason=Reason.UP, **fields):
    pool = PoolThen(name="both", role="both", desired=before, ready=before, starting=0, min_replicas=1, max_replicas=4, start_s=5.5)
    decision = Decision(at_s=at_s, desired={"both": after}, reason=reason, message=f"because of {at_s:g}.", facts={"rate": 12.5})
    return msgspec.to_builtins(Told(decision=decision, pools=(pool,), first_s=at_s - 60, **fields))


def answer(*rows):
    return {"models": [{"model": "m", "now_s": 1_000.0, "decisions": list(rows)}]}


def printed(shown):
    console = Console(width=160, markup=False, record=True, file=io.StringIO())
    for one in shown:
        console.print(one)
    return console.export_text()


def test_each_decision_is_a_row_with_its_sizes_its_reason_and_its_words():
    """The newest first, with the numbers behind it; trouble is said."""
    _, shown = explained(answer(told(990.0, 1, 3, trouble="the API server is away"), told(900.0, 1, 1, Reason.STEADY, times=7)))
    text = printed(shown)
    assert text.index("both 1 → 3") < text.index("because of 900")
    for words in ("10 s", "up", "because of 990.", "Not carried out: the API server is away", "rate 12.5", "5.5 s", "steady"):
        assert words in text
    assert [line.split()[:2] for line in text.splitlines() if "steady" in line] == [["100", "s"]]


def test_a_profile_that_was_measured_is_said():
    """With how far it is from what is declared; else that it is as declared."""
    row = told(990.0, 1, 3)
    assert "what is declared" in printed(explained(answer(row))[1])
    fit = PoolFit(pool="both", declared="fast", row=(1.0,), samples=912, interval_ratio=0.1, prefill_ratio=1.984, decode_ratio=0.5)
    row["pools"][0]["fit"] = msgspec.to_builtins(fit)
    assert "prefill ×1.98, decode ×0.50 of what fast says (912 passes measured)" in printed(explained(answer(row))[1])


def test_where_the_time_of_a_start_goes_is_said():
    """By phase where it was measured, the empty ones left out; else that it is declared."""
    row = told(990.0, 1, 3)
    assert "5.5 s (declared)" in printed(explained(answer(row))[1])
    row["pools"][0]["start"] = msgspec.to_builtins(Start(name="median of 3", pull_s=2.0, engine_s=3.44))
    assert "5.5 s (pull 2.0, engine 3.4)" in printed(explained(answer(row))[1])


def test_rows_of_another_version_are_passed_over():
    """Those that can be read are shown."""
    _, shown = explained(answer({"of": "tomorrow"}, {**told(990.0, 1, 2), "new": 1}))
    assert "both 1 → 2" in printed(shown)


def test_no_autoscaler_is_said():
    """With the model, and what would start one."""
    with pytest.raises(PenstockError, match="about m yet, or in the last days; `penstock up --autoscale`"):
        explained(answer())


def test_status_has_a_line_for_the_newest_decision():
    """And the decision itself for scripts."""
    models = [{"model": "m"}, {"model": "other"}]
    line = add_scaling(models, answer(told(990.0, 1, 3), told(900.0, 1, 1)))
    assert line == "m: autoscaler 10 s ago, up: both 1 → 3: because of 990."
    assert models[0]["scaling"]["decision"]["desired"] == {"both": 3}
    assert "scaling" not in models[1]
