"""Routers' windows in a real Redis: they add up, none is counted twice or lost, and a slow router makes nothing smaller."""

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from penstock_cli.redis_server import RedisServer
from penstock_core.errors import IndexUnavailable
from penstock_core.profile import PROFILES
from penstock_core.profile_fit import PoolFit
from penstock_core.traffic import Ended, Window, joined
from penstock_kvindex.calls import connect
from penstock_kvindex.window_wire import MOST_FITS, MOST_REQUESTS, decode_window, encode_window
from penstock_kvindex.windows import KEPT_S, Published, Windows, successive
from window_strategies import content, windows


def window(since_s: float, until_s: float, arrivals: int = 4, **fields: Any) -> Window:
    """Arrivals evenly spread, as many endings, each of 100 + its number prompt tokens."""
    times = np.linspace(since_s, until_s, arrivals, endpoint=False)
    tokens = np.arange(arrivals) + 100
    ended = Ended(
        arrival_s=times - 2.5,
        prompt_tokens=tokens,
        hit_tokens=tokens // 2,
        output_tokens=tokens + 7,
        ttft_s=np.full(arrivals, 0.25),
        tpot_s=np.where(tokens % 2, np.nan, 0.125),
        ok=tokens % 3 > 0,
    )
    return Window(
        since_s=since_s,
        until_s=until_s,
        arrival_s=times,
        prompt_tokens=tokens,
        ended=ended,
        arrivals=arrivals,
        endings=arrivals,
        **fields,
    )


def gathered(rows: Sequence[Published], since_s: float, gone_s: float) -> Window | None:
    """All intervals in one; None: there is none."""
    found = successive(rows, since_s, gone_s, math.inf)
    assert len(found) <= 1
    return found[0] if found else None


async def read(windows: Windows, since_s: float) -> Window | None:
    """The same of what is in Redis."""
    _, found = await windows.since(since_s, math.inf)
    assert len(found) <= 1
    return found[0] if found else None


def on_redis(url: str, model: str, story: Callable[[Windows], Awaitable[None]]) -> None:
    async def told() -> None:
        windows = Windows(url, model, timeout_s=30.0)
        try:
            await story(windows)
        finally:
            await windows.aclose()

    asyncio.run(told())


def test_a_window_comes_back_as_it_was() -> None:
    """Times to a hundredth of a millisecond, counts exactly, and what has no value stays without one."""
    sent = window(1.7e9, 1.7e9 + 5, 50, shed=2, failed=1, queue_s=3.5, waiting=4)
    router, got, last = decode_window(encode_window("r", sent, last=True)) or pytest.fail("unreadable")
    assert (router, last) == ("r", True)
    for name in ("since_s", "until_s", "arrivals", "endings", "shed", "failed", "queue_s", "waiting"):
        assert getattr(got, name) == getattr(sent, name)
    np.testing.assert_allclose(got.arrival_s, sent.arrival_s, atol=1e-5)
    np.testing.assert_array_equal(got.prompt_tokens, sent.prompt_tokens)
    for name in Ended.__struct_fields__:
        np.testing.assert_allclose(getattr(got.ended, name), getattr(sent.ended, name), atol=1e-5)


def test_a_very_busy_window_travels_as_an_even_sample() -> None:
    """Its size is bounded, its counts are those of all requests, and no stretch of it is left out."""
    wire = encode_window("r", window(0.0, 10.0, 50_000), last=False)
    assert len(wire) < 70_000
    _, got, _ = decode_window(wire) or pytest.fail("unreadable")
    assert (got.arrivals, got.endings, len(got.arrival_s)) == (50_000, 50_000, MOST_REQUESTS)
    assert np.diff(got.arrival_s).max() < 0.011


def test_a_request_is_known_again_by_its_arrival() -> None:
    """The moment is the very same number in the window it came in and in the one it ended in."""
    came, ended = window(1.7e9 + 0.1, 1.7e9 + 5.1, 50), window(1.7e9 + 2.6, 1.7e9 + 7.6, 50)
    _, first, _ = decode_window(encode_window("r", came, last=False)) or pytest.fail("unreadable")
    _, second, _ = decode_window(encode_window("r", ended, last=False)) or pytest.fail("unreadable")
    assert set(second.ended.arrival_s.tolist()) == set(first.arrival_s.tolist())


@given(windows())
def test_any_window_comes_back_with_everything_that_was_in_it(sent: Window) -> None:
    """Sizes, moments and what has no value; a written form that is cut off anywhere is no window, and no error."""
    wire = encode_window("r", sent, last=False)
    router, got, last = decode_window(wire) or pytest.fail("unreadable")
    assert (router, last) == ("r", False)
    assert content(got) == content(sent)
    assert decode_window(wire[: len(wire) // 2]) is None


@given(st.data(), st.integers(1, 4))
def test_however_requests_are_spread_over_routers_the_sum_is_the_same(data: st.DataObject, routers: int) -> None:
    """Each router's windows of the same times; the rows of the stream in any order; read at once, or up to a moment and then the rest."""
    rows = [Published(f"r{router}", data.draw(windows(since_s=5.0 * turn, length_s=5.0))) for router in range(routers) for turn in range(3)]
    mixed = data.draw(st.permutations(rows))
    whole, again = gathered(rows, 0.0, -60.0), gathered(mixed, 0.0, -60.0)
    assert whole is not None
    assert again is not None
    assert content(again) == content(whole)
    assert whole.arrivals == sum(row.window.arrivals for row in rows)
    first = gathered([row for row in mixed if row.window.until_s <= 10.0], 0.0, -60.0)
    assert first is not None
    rest = gathered(mixed, first.until_s, -60.0)
    assert rest is not None
    assert content(joined([first, rest])) == content(whole)


@given(st.data(), st.integers(1, 3))
def test_successive_intervals_are_the_whole_and_lie_one_after_the_other(data: st.DataObject, routers: int) -> None:
    """No request is in two of them or in none, each is as long as asked for, the last one too where there is enough of it."""
    rows = [Published(f"r{router}", data.draw(windows(since_s=5.0 * turn, length_s=5.0))) for router in range(routers) for turn in range(7)]
    whole, parts = gathered(rows, 0.0, -60.0), successive(rows, 0.0, -60.0, 15.0)
    assert whole is not None
    assert content(joined(parts)) == content(whole)
    assert [(one.since_s, one.until_s) for one in parts] == [(0.0, 15.0), (15.0, 30.0), (30.0, 35.0)]
    assert [one.arrivals for one in parts] == [
        sum(row.window.arrivals for row in rows if one.since_s < row.window.until_s <= one.until_s) for one in parts
    ]
    assert (parts[-1].waiting, parts[-1].fits) == (whole.waiting, whole.fits)
    assert successive([], 0.0, -60.0, 15.0) == []


def test_windows_that_end_a_little_early_make_up_an_interval_all_the_same() -> None:
    """Three of hardly less than 5 s are one of 15 s."""
    rows = [Published("r", window(4.9999 * n, 4.9999 * (n + 1))) for n in range(60)]
    assert len(successive(rows, 0.0, -60.0, 15.0)) == 20


@pytest.mark.parametrize("period_s", [5.0, 15.0, math.inf])
def test_a_time_that_nobody_told_of_is_no_quiet_one(period_s: float) -> None:
    """It is in no interval, however long these are to be: what follows it begins where its first window begins."""
    rows = [Published("a", window(*times)) for times in ((0.0, 5.0), (60.0, 65.0), (65.0, 75.0))]
    parts = successive(rows, 0.0, -60.0, period_s)
    assert parts[0].until_s == 5.0
    assert parts[1].since_s == 60.0
    assert sum(one.length_s for one in parts) == 20.0
    told = [*rows, Published("b", window(4.0, 61.0), last=True)]
    assert sum(one.length_s for one in successive(told, 0.0, -60.0, period_s)) == 75.0


def test_intervals_go_on_where_the_last_reading_ended() -> None:
    """A window of a router that cuts elsewhere reaches back before it: that time has been told of and is in no second interval."""
    rows = [Published("a", window(0.0, 10.0)), Published("a", window(10.0, 20.0)), Published("b", window(5.0, 15.0))]
    read = successive(rows[:1], 0.0, -60.0, 15.0)
    assert [(one.since_s, one.until_s) for one in [*read, *successive(rows, 10.0, 15.0, 15.0)]] == [(0.0, 10.0), (10.0, 20.0)]


@pytest.mark.parametrize("broken", [b"", b"\x81", msgspec.msgpack.encode({"v": 99})])
def test_what_cannot_be_read_is_passed_over(broken: bytes) -> None:
    """A window of another version does not stop those of this one."""
    assert decode_window(broken) is None


def test_arrays_of_different_lengths_are_no_window() -> None:
    """A row without its tokens is refused."""
    wire = msgspec.msgpack.decode(encode_window("r", window(0.0, 5.0), last=False))
    assert decode_window(msgspec.msgpack.encode({**wire, "prompt": wire["prompt"][:-4]})) is None
    assert decode_window(msgspec.msgpack.encode({**wire, "hit": wire["hit"][:-4]})) is None
    assert decode_window(msgspec.msgpack.encode({**wire, "new": 1})) is not None


def fit(pool: str = "both", **fields: object) -> PoolFit:
    row = tuple(PROFILES["polynomial-reference"].at_speed(0.5).coefficients().tolist())
    made = PoolFit(
        pool=pool, declared="polynomial-reference", row=row, samples=300, interval_ratio=0.1, prefill_ratio=2.0, decode_ratio=2.0
    )
    return msgspec.structs.replace(made, **fields)


def test_what_was_learned_of_engines_travels_bounded() -> None:
    """To the last bit, infinite places of a row too; of more pools than are told of, the first."""
    sent = [fit(f"pool-{n}") for n in range(MOST_FITS + 5)]
    _, got, _ = decode_window(encode_window("r", window(0.0, 5.0, fits=tuple(sent)), last=False)) or pytest.fail("unreadable")
    assert list(got.fits) == sent[:MOST_FITS]
    wire = msgspec.msgpack.decode(encode_window("r", got, last=False))
    long = {**msgspec.to_builtins(sent[0]), "row": [1.0] * 1_000}
    assert decode_window(msgspec.msgpack.encode({**wire, "fits": [long]})) is None


def test_of_several_routers_the_one_that_knows_an_engine_best_is_believed() -> None:
    """Each one's latest word counts: more samples, then the narrower interval; what a router said before it is not its word any more."""
    known, vague = fit(samples=9_000, interval_ratio=0.05), fit(samples=9_000, interval_ratio=0.2)
    fresh, forgotten = fit(samples=210, interval_ratio=0.01), fit(samples=50_000, interval_ratio=0.01)
    rows = [
        Published("a", window(0.0, 5.0, fits=(forgotten,))),
        Published("a", window(5.0, 10.0, fits=(vague, fit("decode")))),
        Published("b", window(5.0, 10.0, fits=(known,))),
        Published("c", window(5.0, 10.0, fits=(fresh,))),
    ]
    for order in (rows, rows[::-1]):
        whole = gathered(order, 0.0, -20.0)
        assert whole is not None
        assert whole.fits == (known, fit("decode"))


def test_routers_add_up_and_every_window_is_read_once(redis_url: str, unused_model: str) -> None:
    """Three routers, read twice: each arrival is in exactly one answer, and the second begins where the first ended."""

    async def story(windows: Windows) -> None:
        begin = np.floor(await windows.clock())
        for turn in range(2):
            for router in "abc":
                await windows.publish(Published(router, window(begin + 5 * turn, begin + 5 * turn + 5, 10, waiting=2)))
        first = await read(windows, begin)
        assert first is not None
        assert (first.since_s, first.until_s, first.arrivals, len(first.arrival_s), first.waiting) == (begin, begin + 10, 60, 60, 6)
        assert await read(windows, first.until_s) is None
        for router in "abc":
            await windows.publish(Published(router, window(begin + 10, begin + 15, 7, waiting=1)))
        second = await read(windows, first.until_s)
        assert second is not None
        assert (second.since_s, second.until_s, second.arrivals, second.waiting) == (begin + 10, begin + 15, 21, 3)

    on_redis(redis_url, unused_model, story)


def test_nobody_published_is_not_no_traffic(redis_url: str, unused_model: str) -> None:
    """None for a silent stream; a window without arrivals for an idle router."""

    async def story(windows: Windows) -> None:
        begin = await windows.clock()
        assert await read(windows, begin - 60) is None
        await windows.publish(Published("a", window(begin, begin + 5, 0)))
        idle = await read(windows, begin)
        assert idle is not None
        assert (idle.arrivals, idle.length_s) == (0, 5.0)

    on_redis(redis_url, unused_model, story)


def test_a_slow_router_is_waited_for_until_it_is_gone() -> None:
    """What the others told is not given out as if it were everything; a router that stays silent, or said goodbye, holds up nobody."""
    rows = [
        *(Published("a", window(at, at + 5, 10)) for at in (0.0, 5.0, 10.0)),
        *(Published("b", window(at, at + 5, 10)) for at in (0.0, 5.0)),
    ]
    whole = gathered(rows, 0.0, gone_s=-10.0)
    assert whole is not None
    assert (whole.until_s, whole.arrivals) == (10.0, 40)
    assert gathered(rows, 10.0, gone_s=-10.0) is None
    after = gathered(rows, 10.0, gone_s=10.0)
    assert after is not None
    assert (after.until_s, after.arrivals) == (15.0, 10)
    goodbye = [*rows, Published("b", window(10.0, 11.0, 3, waiting=9), last=True)]
    after = gathered(goodbye, 10.0, gone_s=-10.0)
    assert after is not None
    assert (after.until_s, after.arrivals, after.waiting) == (15.0, 13, 0)


def test_the_stream_is_bounded_and_ends_by_itself(redis_url: str, unused_model: str) -> None:
    """Old windows go as new ones come, and all of them once nobody writes any more."""

    async def story(windows: Windows) -> None:
        redis = connect(redis_url, 30.0)
        try:
            now_s = await windows.clock()
            for turn in range(300):
                await windows.publish(Published("a", window(now_s + turn, now_s + turn + 1, 1)))
            key = f"penstock:{{{unused_model}}}:traffic"
            assert 0 < await redis.pttl(key) <= KEPT_S * 1_000
            before = await redis.xlen(key)
            await windows.publish(Published("a", window(now_s + KEPT_S + 60, now_s + KEPT_S + 61, 1)))
            assert await redis.xlen(key) < before / 2
        finally:
            await redis.aclose()

    on_redis(redis_url, unused_model, story)


def test_many_pages_are_read_whole(redis_url: str, unused_model: str) -> None:
    """A hundred and more windows, more than one page of the stream."""

    async def story(windows: Windows) -> None:
        now_s = await windows.clock()
        for turn in range(150):
            await windows.publish(Published("a", window(now_s + turn, now_s + turn + 1, 2)))
        whole = await read(windows, now_s)
        assert whole is not None
        assert whole.arrivals == 300

    on_redis(redis_url, unused_model, story)


def test_redis_away_is_said(make_redis_server: Callable[[], RedisServer]) -> None:
    """Every call raises IndexUnavailable."""

    async def story() -> None:
        server = make_redis_server()
        windows = Windows(server.url, "m")
        try:
            await windows.clock()
            server.stop()
            for call in (windows.clock(), windows.since(0.0, 15.0), windows.publish(Published("a", window(0.0, 1.0)))):
                with pytest.raises(IndexUnavailable):
                    await call
        finally:
            await windows.aclose()

    asyncio.run(story())
