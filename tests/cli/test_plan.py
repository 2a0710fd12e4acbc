"""`penstock plan` from the outside: over traffic, a mix of types, splits, from live windows, and what it says of bad input."""

import asyncio
import re
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import msgspec
import numpy as np
import pytest
from penstock_autoscaler.decision import Decision, Reason
from penstock_autoscaler.knowledge import Saved
from penstock_autoscaler.observation import Observation, Pool, Target
from penstock_autoscaler.scaler import Scaler
from penstock_autoscaler.settings import ScalerSettings
from penstock_autoscaler.told import PoolThen, Told, encode_told
from penstock_cli.main import app, main
from penstock_cli.plan_live import NothingLive
from penstock_core.endpoint import WorkerRecord
from penstock_core.profile import DEFAULT_PROFILE
from penstock_core.profile_fit import PoolFit
from penstock_core.slo import DEFAULT_SLO, Slo
from penstock_core.traffic import Ended, Window
from penstock_kvindex.models import ServedModels
from penstock_kvindex.redis import RedisIndex
from penstock_kvindex.scaling import ScalingStore
from penstock_kvindex.windows import Published, Windows
from typer.testing import CliRunner

TRAFFIC = ["plan", "--generate", "poisson:requests=240,rate=8,prompt_tokens=2000,output_tokens=60"]


def planned(*arguments: str) -> str:
    done = CliRunner().invoke(app, [*arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_over_traffic_it_tells_sizes_hours_attainment_and_reasons() -> None:
    """Every decision is there, and the figures are those of the replay."""
    found = msgspec.json.decode(planned(*TRAFFIC, "--accelerators", "2", "--json"))
    assert found["summary"]["outcomes"] == {"ok": 240}
    assert found["accelerator_hours"] == pytest.approx(2 * found["summary"]["worker_s"] / 3600)
    assert found["attainment_ratio"] == found["summary"]["goodput_ratio"]
    assert all(one["reason"] and one["message"] and one["desired"].keys() == {"both"} for one in found["decisions"])


def test_every_change_of_size_counts_the_first_decisions_too() -> None:
    """Two replicas where one will do are one change; traffic that is over before a decision is none, and said to be so."""
    slow = ["plan", "--generate", "poisson:requests=60,rate=0.2,prompt_tokens=500,output_tokens=20", "--min", "1"]
    shown = planned(*slow, "--workers", "1")
    assert "0 changes of size" in shown
    rising = ["plan", "--generate", "poisson:requests=300,rate=12,prompt_tokens=4000,output_tokens=20", "--start-s", "1"]
    found = msgspec.json.decode(planned(*rising, "--json"))
    assert found["decisions"][0]["desired"]["both"] > 1, "the first decision changes the size"
    sizes = [1, *(one["desired"]["both"] for one in found["decisions"])]
    assert found["changes"] == sum(before != after for before, after in pairwise(sizes))
    over = planned("plan", "--generate", "poisson:requests=5,rate=5,prompt_tokens=100,output_tokens=5")
    assert "the traffic is over before the first decision" in over
    assert "0 changes of size" in over


def test_a_divided_fleet_is_planned_by_role_and_drawn(tmp_path: Path) -> None:
    """Both pools have a size in every row; the picture is a picture."""
    shown = planned(*TRAFFIC, "--prefill", "1", "--decode", "1", "--plot", str(tmp_path / "made" / "plan.png"))
    assert "1P1D" in shown
    assert "of 240 requests met both targets" in shown
    assert (tmp_path / "made" / "plan.png").read_bytes().startswith(b"\x89PNG")


def test_the_cheapest_mix_of_types_is_named_with_its_price_and_checked() -> None:
    """The price is that of the replicas, and no type alone is cheaper."""
    types = "polynomial-reference=4,polynomial-reference@0.5=1.5*8"
    found = msgspec.json.decode(planned(*TRAFFIC, "--gpu-types", types, "--json"))
    replicas = found["mix"]["replicas"]
    prices = {"polynomial-reference": 4.0, "polynomial-reference@0.5": 1.5}
    assert found["mix"]["price"] == pytest.approx(sum(prices[name] * count for name, count in replicas.items()))
    assert found["attainment_ratio"] >= 0.95
    assert all(price is None or price >= found["mix"]["price"] for price in found["alone"].values())


def test_splits_are_told_by_size() -> None:
    """Up to the first that reaches the goal."""
    found = msgspec.json.decode(planned(*TRAFFIC, "--splits", "--json"))["splits"]
    assert found[0]["prefill"] + found[0]["decode"] == 2
    assert found[-1]["attainment_ratio"] >= 0.95


def test_live_it_decides_from_the_windows_and_the_targets_of_the_model(
    redis_url: str, unused_model: str, make_record: Callable[..., WorkerRecord]
) -> None:
    """More requests than one replica can serve: more replicas, a reason, and nothing written down."""

    async def prepare() -> float:
        index, windows, models = (
            RedisIndex(redis_url, unused_model, lease_s=600.0),
            Windows(redis_url, unused_model),
            ServedModels(redis_url),
        )
        try:
            await index.register(msgspec.structs.replace(make_record(1), profile=DEFAULT_PROFILE))
            await models.set_targets({unused_model: Slo(1.5, 0.03)})
            now_s = await windows.clock()
            await windows.publish(Published("router", _busy(now_s - 120.0, now_s)))
        finally:
            for one in (index, windows, models):
                await one.aclose()
        return now_s

    asyncio.run(prepare())
    found = msgspec.json.decode(planned("plan", "--redis", redis_url, "--model", unused_model, "--json"))
    decision = found["decision"]
    assert decision["valid"]
    assert decision["reason"] == "up"
    (pool,) = decision["desired"]
    assert decision["desired"][pool] > found["here"][pool] == 1
    assert "2400 requests in 120 s; no autoscaler has decided for it" in found["seen"]


def _window(since_s: float, until_s: float, count: int, tokens: tuple[int, int], ttft_s: float, tpot_s: float) -> Window:
    """So many requests of (prompt, answer) tokens, evenly spread, all answered within it."""
    times = np.linspace(since_s, until_s, count, endpoint=False)
    prompts, answers = (np.full(count, one) for one in tokens)
    ended = Ended(
        arrival_s=times,
        prompt_tokens=prompts,
        hit_tokens=np.zeros(count, np.int64),
        output_tokens=answers,
        ttft_s=np.full(count, ttft_s),
        tpot_s=np.full(count, tpot_s),
        ok=np.ones(count, bool),
    )
    return Window(since_s=since_s, until_s=until_s, arrival_s=times, prompt_tokens=prompts, ended=ended, arrivals=count, endings=count)


def _even(since_s: float, until_s: float, rate: float) -> Window:
    """Short prompts, each answered in time."""
    return _window(since_s, until_s, round(rate * (until_s - since_s)), (500, 50), 0.1, 0.01)


def test_live_idle_time_does_not_thin_out_the_traffic_of_now(
    redis_url: str, unused_model: str, make_record: Callable[..., WorkerRecord]
) -> None:
    """Windows are read one after the other, as a running autoscaler reads them: four quiet minutes and one at 2 requests/s are 2."""

    async def prepare() -> None:
        index, windows = RedisIndex(redis_url, unused_model, lease_s=600.0), Windows(redis_url, unused_model)
        await index.register(msgspec.structs.replace(make_record(1), profile=DEFAULT_PROFILE))
        begin_s = np.floor(await windows.clock()) - 300.0
        for n in range(60):
            await windows.publish(Published("router", _even(begin_s + 5 * n, begin_s + 5 * n + 5, 2.0 if n >= 48 else 0.0)))
        await index.aclose()
        await windows.aclose()

    asyncio.run(prepare())
    found = msgspec.json.decode(planned("plan", "--redis", redis_url, "--model", unused_model, "--json"))
    assert found["decision"]["facts"]["rate_now"] == pytest.approx(2.0)
    assert "120 requests in 300 s" in found["seen"]


@pytest.mark.parametrize(
    ("settings", "target", "prompt_tokens", "decisions", "reason"),
    [
        (ScalerSettings(), Target(slo=DEFAULT_SLO, attainment_ratio=0.95), 500, 3, "waiting"),
        (ScalerSettings(stable_s=600.0), Target(slo=DEFAULT_SLO, attainment_ratio=0.9), 500, 30, "waiting"),
        (ScalerSettings(), Target(slo=DEFAULT_SLO, most_accelerators=6), 100_000, 3, "limited"),
    ],
    ids=["defaults", "its own settings and goal", "its budget"],
)
def test_live_it_says_what_the_running_autoscaler_says(
    redis_url: str,
    unused_model: str,
    make_record: Callable[..., WorkerRecord],
    settings: ScalerSettings,
    target: Target,
    prompt_tokens: int,
    decisions: int,
    reason: str,
) -> None:
    """It goes on from that one's memory, also where nothing is new since its last decision: the same sentence, sizes and reason."""
    record = msgspec.structs.replace(make_record(1), profile=DEFAULT_PROFILE)
    pool = Pool(
        name=record.pool,
        role=record.role,
        desired=3,
        min_replicas=1,
        max_replicas=4,
        profile=DEFAULT_PROFILE,
        start_s=DEFAULT_PROFILE.start_s,
        accelerators=2,
    )

    async def prepare() -> Decision:
        index, windows, store = (
            RedisIndex(redis_url, unused_model, lease_s=600.0),
            Windows(redis_url, unused_model),
            ScalingStore(redis_url, unused_model),
        )
        await index.register(record)
        brain, now_s = Scaler(settings), await windows.clock() + 300.0  # ahead, so that it is not taken for long ago on a slow machine
        for n in range(decisions):
            until_s = now_s - 15.0 * (decisions - 1 - n)
            many = 30 // decisions if n else 0  # fewer than 40 in all are not replayed
            window = _window(until_s - 15.0, until_s, many, (prompt_tokens, 50), 0.1, 0.01)
            await windows.publish(Published("router", window))
            decision = brain.step(Observation(now_s=until_s, target=target, pools=(pool,), replicas=(), traffic=window))
        size = {"desired": 3, "ready": 3, "starting": 0, "min_replicas": 1, "max_replicas": 4, "accelerators": 2}
        then = PoolThen(name=pool.name, role="both", start_s=pool.start_s, **size)
        told = Told(decision=decision, pools=(then,), first_s=now_s, target=target)
        await store.hold("a", 600.0)
        saved = msgspec.msgpack.encode(Saved(now_s, brain.saved(), settings=settings))
        await store.keep("a", saved, encode_told(told), again=False)
        for one in (index, windows, store):
            await one.aclose()
        return decision

    decided = asyncio.run(prepare())
    found = msgspec.json.decode(planned("plan", "--redis", redis_url, "--model", unused_model, "--json"))
    assert found["decision"]["reason"] == decided.reason.value == reason
    assert found["decision"]["message"] == decided.message
    assert found["decision"]["desired"] == decided.desired
    assert found["decision"]["facts"]["worth_ratio"] == pytest.approx(decided.facts["worth_ratio"], rel=0.1)  # its goal
    assert "gone on from its autoscaler's memory" in found["seen"]


def test_live_it_keeps_to_what_the_models_own_autoscaler_keeps_to(
    redis_url: str, unused_model: str, make_record: Callable[..., WorkerRecord]
) -> None:
    """Its bounds, unless others are given, and the profile that routers fitted; of a model that sleeps, what its autoscaler says."""
    record = msgspec.structs.replace(make_record(1), profile=DEFAULT_PROFILE)
    decision = Decision(at_s=1.0, desired={record.pool: 0}, reason=Reason.STEADY, message="Nobody asks.")
    pool = PoolThen(name=record.pool, role="both", desired=0, ready=0, starting=0, min_replicas=1, max_replicas=2, start_s=33.0)
    row = tuple(DEFAULT_PROFILE.at_speed(0.2).coefficients().tolist())
    fit = PoolFit(pool=record.pool, declared=DEFAULT_PROFILE.name, row=row, samples=900, interval_ratio=0.1, prefill_ratio=5.0)

    async def asleep() -> None:
        store, models = ScalingStore(redis_url, unused_model), ServedModels(redis_url)
        await models.set_targets({unused_model: Slo()})
        await store.hold("a", 600.0)
        await store.keep("a", b"", encode_told(Told(decision=decision, pools=(pool,), first_s=1.0)), again=False)
        await store.aclose()
        await models.aclose()

    async def ended() -> None:
        store = ScalingStore(redis_url, unused_model)
        await store.release("a")
        await store.aclose()

    async def awake() -> None:
        index, windows = RedisIndex(redis_url, unused_model, lease_s=600.0), Windows(redis_url, unused_model)
        await index.register(record)
        now_s = await windows.clock()
        await windows.publish(Published("router", msgspec.structs.replace(_busy(now_s - 120.0, now_s), fits=(fit,))))
        await index.aclose()
        await windows.aclose()

    live = ("plan", "--redis", redis_url, "--model", unused_model)
    asyncio.run(asleep())
    shown = planned(*live)
    assert re.search(rf"{record.pool} +0 +0 *\n", shown)
    assert "steady: Nobody asks." in shown
    assert "No worker is there: what its autoscaler decided" in shown
    asyncio.run(ended())
    with pytest.raises(NothingLive, match=f"its autoscaler, which runs no more, said: {record.pool} 0: Nobody asks."):
        CliRunner().invoke(app, [*live], catch_exceptions=False)
    asyncio.run(awake())
    found = msgspec.json.decode(planned(*live, "--json"))
    assert found["decision"]["desired"] == {record.pool: 2}
    assert f"engines of {record.pool} take prefill ×5.00" in found["seen"]
    found = msgspec.json.decode(planned(*live, "--max", "5", "--json"))
    assert found["decision"]["desired"] == {record.pool: 5}


def _busy(since_s: float, until_s: float) -> Window:
    """Twenty requests a second of 4,000 tokens: 1.7 replicas' worth of prefill alone."""
    return _window(since_s, until_s, 2_400, (4_000, 200), 5.0, 0.2)


def test_live_without_windows_it_says_that_nothing_is_known(
    redis_url: str, unused_model: str, make_record: Callable[..., WorkerRecord]
) -> None:
    """No data is no decision: the size stays, and it is not valid."""

    async def prepare() -> None:
        index = RedisIndex(redis_url, unused_model, lease_s=600.0)
        await index.register(make_record(1))
        await index.aclose()

    asyncio.run(prepare())
    found = msgspec.json.decode(planned("plan", "--redis", redis_url, "--model", unused_model, "--json"))
    assert not found["decision"]["valid"]
    assert found["decision"]["reason"] == "no_data"
    assert found["decision"]["desired"] == found["here"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--gpu-types", "polynomial-reference=1"], "--gpu-types: of no use without traffic; allowed: with --trace or --generate"),
        (["--workers", "2", "--seed", "1"], "--workers, --seed: of no use without traffic"),
        ([*TRAFFIC[1:], "--gpu-types", "nothing=1", "--splits"], "--gpu-types and --splits are given; allowed: one of them"),
        ([*TRAFFIC[1:], "--window-s", "-1"], "--window-s: of no use without types to choose from; allowed: with --gpu-types"),
        ([*TRAFFIC[1:], "--gpu-types", "polynomial-reference=1", "--window-s", "-1"], "window-s is -1.0; allowed: more than 0"),
        ([*TRAFFIC[1:], "--splits", "--plot", "p.png"], "--splits and --plot are given; allowed: one of them"),
        ([*TRAFFIC[1:], "--gpu-types", "polynomial-reference"], "allowed: NAME=PRICE[*MOST]"),
        ([*TRAFFIC[1:], "--gpu-types", "nothing=1"], "gpu-types is 'nothing=1': profile is 'nothing'; allowed: "),
        ([*TRAFFIC[1:], "--gpu-types", "polynomial-reference=x"], "allowed: NAME=PRICE[*MOST]"),
        ([*TRAFFIC[1:], "--gpu-types", "polynomial-reference=3*0"], "allowed: a price above 0, and 1 or more to be had"),
        ([*TRAFFIC[1:], "--gpu-types", "polynomial-reference@x=3"], "polynomial-reference@x=3': speed is 'x'; allowed: 0.01..1000"),
        ([*TRAFFIC[1:], "--gpu-types", "polynomial-reference=0"], "allowed: a price above 0"),
        ([*TRAFFIC[1:], "--gpu-types", "polynomial-reference=1,polynomial-reference=2"], "allowed: each name once"),
        ([*TRAFFIC[1:], "--prefill", "2"], "allowed: --workers alone, or --prefill and --decode"),
        ([*TRAFFIC[1:], "--goal", "1"], "goal is 1.0; allowed: more than 0 and less than 1"),
        ([*TRAFFIC[1:], "--min", "4", "--max", "2"], "min is 4; allowed: 1..2"),
        (["--redis", "redis://127.0.0.1:1/0"], "127.0.0.1"),
    ],
)
def test_bad_input_is_named_with_what_is_allowed(
    arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line, without a traceback."""
    monkeypatch.setattr(sys, "argv", ["penstock", "plan", *arguments])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 1
    assert said in capsys.readouterr().err
