"""The wire form of a Window: MessagePack with packed arrays, bounded in size by an even sample of the requests.

`windows` is its only user. Moments travel as whole microseconds, so that a request's arrival is the same number in the window it came in
and in the one it ended in; durations as 32-bit floats. Unknown fields are passed over: an older autoscaler reads a newer router's windows.
"""

from typing import Annotated

import msgspec
import numpy as np
from numpy.typing import NDArray
from penstock_core.profile_fit import PoolFit
from penstock_core.traffic import Ended, Window, thinned

MOST_REQUESTS = 1_024
"""Arrivals, and endings, of one window; of more, evenly chosen ones travel. 50 KB for a full window."""
MOST_FITS = 16
"""Pools of one model that are told of."""
_VERSION = 1


class _Wire(msgspec.Struct, kw_only=True):
    v: int
    router: str
    last: bool = False
    since_s: float
    until_s: float
    arrivals: int
    endings: int
    shed: int = 0
    failed: int = 0
    queue_s: float = 0.0
    waiting: int = 0
    arrival: bytes
    prompt: bytes
    ended_arrival: bytes
    ended_prompt: bytes
    hit: bytes
    output: bytes
    ttft: bytes
    tpot: bytes
    ok: bytes
    fits: Annotated[tuple[PoolFit, ...], msgspec.Meta(max_length=MOST_FITS)] = ()


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Wire).decode


def encode_window(router: str, window: Window, *, last: bool) -> bytes:
    """At most MOST_REQUESTS arrivals and endings of it; the counts stay those of all."""
    window = thinned(window, MOST_REQUESTS)
    ended = window.ended
    return _encode(
        _Wire(
            v=_VERSION,
            router=router,
            last=last,
            since_s=float(window.since_s),
            until_s=float(window.until_s),
            arrivals=window.arrivals,
            endings=window.endings,
            shed=window.shed,
            failed=window.failed,
            queue_s=window.queue_s,
            waiting=window.waiting,
            arrival=_moments(window.arrival_s),
            prompt=_counts(window.prompt_tokens),
            ended_arrival=_moments(ended.arrival_s),
            ended_prompt=_counts(ended.prompt_tokens),
            hit=_counts(ended.hit_tokens),
            output=_counts(ended.output_tokens),
            ttft=_durations(ended.ttft_s),
            tpot=_durations(ended.tpot_s),
            ok=ended.ok.astype("u1").tobytes(),
            fits=window.fits[:MOST_FITS],
        )
    )


def decode_window(wire: bytes) -> tuple[str, Window, bool] | None:
    """(router, window, whether it is the router's last); None for a form that this version cannot read."""
    try:
        found = _decode(wire)
        if found.v != _VERSION or found.until_s <= found.since_s:
            return None
        window = Window(
            since_s=found.since_s,
            until_s=found.until_s,
            arrival_s=_read_moments(found.arrival),
            prompt_tokens=_read_counts(found.prompt),
            ended=Ended(
                arrival_s=_read_moments(found.ended_arrival),
                prompt_tokens=_read_counts(found.ended_prompt),
                hit_tokens=_read_counts(found.hit),
                output_tokens=_read_counts(found.output),
                ttft_s=_read_durations(found.ttft),
                tpot_s=_read_durations(found.tpot),
                ok=np.frombuffer(found.ok, "u1").astype(np.bool_),
            ),
            arrivals=found.arrivals,
            endings=found.endings,
            shed=found.shed,
            failed=found.failed,
            queue_s=found.queue_s,
            waiting=found.waiting,
            fits=found.fits,
        )
    except (msgspec.DecodeError, ValueError):
        return None
    sizes = {len(getattr(window.ended, name)) for name in Ended.__struct_fields__}
    whole = len(sizes) == 1 and len(window.arrival_s) == len(window.prompt_tokens)
    return (found.router, window, found.last) if whole else None


def _moments(values: NDArray[np.float64]) -> bytes:
    return np.rint(values * 1e6).astype("<i8").tobytes()


def _durations(values: NDArray[np.float64]) -> bytes:
    return values.astype("<f4").tobytes()


def _counts(values: NDArray[np.int64]) -> bytes:
    return np.clip(values, 0, (1 << 32) - 1).astype("<u4").tobytes()


def _read_moments(packed: bytes) -> NDArray[np.float64]:
    return np.frombuffer(packed, "<i8") / 1e6


def _read_durations(packed: bytes) -> NDArray[np.float64]:
    return np.frombuffer(packed, "<f4").astype(np.float64)


def _read_counts(packed: bytes) -> NDArray[np.int64]:
    return np.frombuffer(packed, "<u4").astype(np.int64)
