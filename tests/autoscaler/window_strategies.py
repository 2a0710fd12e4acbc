"""Windows of any traffic, for property tests. Times are whole multiples of 1/64 s, so that sums and orders are exact."""

import numpy as np
from hypothesis import strategies as st
from penstock_core.profile_fit import PoolFit
from penstock_core.traffic import Ended, Window

TICK_S = 1.0 / 64
_tokens = st.integers(0, 100_000)
_seconds = st.one_of(st.just(float("nan")), st.integers(0, 64_000).map(lambda ticks: ticks * TICK_S))
_ended = st.tuples(st.integers(0, 64_000), _tokens, _tokens, _tokens, _seconds, _seconds, st.booleans())
_fit = st.builds(
    PoolFit,
    pool=st.sampled_from(["both", "prefill", "decode"]),
    declared=st.just("declared"),
    row=st.sampled_from([(), (1.0, float("inf")), (2.0, 3.0)]),
    samples=st.integers(0, 2_000),
    interval_ratio=st.sampled_from([0.05, 0.1, 0.25]),
)


@st.composite
def windows(draw: st.DrawFn, since_s: float | None = None, length_s: float | None = None, most: int = 12) -> Window:
    """One window; anything may have been sampled, so counts are at least the rows."""
    since_s = draw(st.integers(0, 40)) * 5.0 if since_s is None else since_s
    length_s = draw(st.integers(1, 6)) * 5.0 if length_s is None else length_s
    came = sorted(draw(st.lists(st.integers(0, int(length_s / TICK_S) - 1), max_size=most)))
    prompts = draw(st.lists(_tokens, min_size=len(came), max_size=len(came)))
    rows = draw(st.lists(_ended, max_size=most))
    at, prompt, hit, output, ttft, tpot, ok = zip(*rows, strict=True) if rows else ((),) * 7
    ended = Ended(
        arrival_s=np.array(at, np.float64) * TICK_S,
        prompt_tokens=np.array(prompt, np.int64),
        hit_tokens=np.array(hit, np.int64),
        output_tokens=np.array(output, np.int64),
        ttft_s=np.array(ttft, np.float64),
        tpot_s=np.array(tpot, np.float64),
        ok=np.array(ok, np.bool_),
    )
    lost = draw(st.integers(0, 5))
    return Window(
        since_s=since_s,
        until_s=since_s + length_s,
        arrival_s=since_s + np.array(came, np.float64) * TICK_S,
        prompt_tokens=np.array(prompts, np.int64),
        ended=ended,
        arrivals=len(came) + draw(st.integers(0, 5)),
        endings=len(rows) + lost,
        shed=draw(st.integers(0, lost)),
        failed=draw(st.integers(0, 3)),
        queue_s=draw(st.integers(0, 1_000)) * TICK_S,
        waiting=draw(st.integers(0, 9)),
        fits=tuple({fit.pool: fit for fit in draw(st.lists(_fit, max_size=3))}.values()),
    )


def content(window: Window) -> tuple[object, ...]:
    """Everything in it, requests of one instant in any order."""
    ended = window.ended
    rows = zip(*(np.nan_to_num(getattr(ended, name), nan=-1.0).tolist() for name in Ended.__struct_fields__), strict=True)
    plain = [getattr(window, name) for name in Window.__struct_fields__ if name not in ("arrival_s", "prompt_tokens", "ended")]
    assert (np.diff(window.arrival_s) >= 0).all()
    return (*plain, sorted(zip(window.arrival_s.tolist(), window.prompt_tokens.tolist(), strict=True)), sorted(rows))
