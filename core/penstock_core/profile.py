"""How fast an engine replica computes: seconds of a prefill, of a decode step, KV size, start-up time.

A profile belongs to (model revision, engine version, accelerator, parallelism, weight and KV dtype). The router predicts
with it, the sim engine lives by it, the simulator and the autoscaler replay with it. All are plain coefficients in one
form, so that a compiled kernel can take them as rows of an array (`coefficients`). The online correction is in
`profile_fit`.
"""

import math
from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

KNOTS = 8
"""Most knots of an interpolated prefill curve."""


class DecodePiece(msgspec.Struct, frozen=True):
    """seconds = constant + per_stream·b + per_token·C + per_token_squared·C², where this piece holds."""

    constant_s: float
    per_stream_s: float = 0.0
    per_token_s: float = 0.0
    per_token_squared_s: float = 0.0


class EngineProfile(msgspec.Struct, frozen=True, kw_only=True):
    """Timing and memory of one engine replica. Symbols: u new prompt tokens, h cached ones, b streams, C context tokens."""

    name: str
    source: str
    """Where the figures come from."""
    kv_tokens: int
    """KV capacity in tokens."""
    kv_bytes_per_token: int
    transfer_bytes_per_s: float = 25e9
    start_s: float = 60.0
    """Process start to ready."""
    pass_tokens: int = 8_192
    """Token budget of one pass of the engine (chunked prefill), decoding streams included."""
    max_streams: int = 256
    """Most requests running at once."""
    prefill_constant_s: float = 0.0
    prefill_per_token_s: float = 0.0
    prefill_per_token_squared_s: float = 0.0
    prefill_per_cached_pair_s: float = 0.0
    """Seconds per u·h: new tokens attend to cached ones."""
    prefill_knots: tuple[tuple[int, float], ...] = ()
    """(tokens, seconds), rising; where given, the curve through them replaces the polynomial (last slope goes on)."""
    decode_floor_s: float = 0.0
    decode_small: DecodePiece
    decode_large: DecodePiece | None = None
    """Holds from `decode_split_streams` streams on; None: the small piece holds everywhere."""
    decode_split_streams: int = 0
    decode_context_cap_tokens: int = 0
    """C is taken as at most this; 0: as it is."""

    def __post_init__(self) -> None:
        for field in ("kv_tokens", "kv_bytes_per_token", "transfer_bytes_per_s", "pass_tokens", "max_streams"):
            if getattr(self, field) <= 0:
                raise ValueError(f"profile {self.name}: {field} is {getattr(self, field)!r}; allowed: more than 0")
        if len(self.prefill_knots) > KNOTS or list(self.prefill_knots) != sorted(set(self.prefill_knots)):
            raise ValueError(f"profile {self.name}: prefill_knots must be at most {KNOTS} rising pairs, got {self.prefill_knots!r}")

    def prefill_s(self, new_tokens: int, cached_tokens: int = 0) -> float:
        """Seconds of a pass over `new_tokens` prompt tokens after `cached_tokens` cached ones; 0 for no new tokens."""
        if new_tokens <= 0:
            return 0.0
        if self.prefill_knots:
            return _interpolate(self.prefill_knots, new_tokens)
        return (
            self.prefill_constant_s
            + self.prefill_per_token_s * new_tokens
            + self.prefill_per_token_squared_s * new_tokens * new_tokens
            + self.prefill_per_cached_pair_s * new_tokens * cached_tokens
        )

    def decode_s(self, streams: int, context_tokens: float) -> float:
        """Seconds of a decode step of `streams` streams with `context_tokens` tokens of context in all; 0 for none."""
        if streams <= 0:
            return 0.0
        context = min(context_tokens, self.decode_context_cap_tokens) if self.decode_context_cap_tokens else context_tokens
        piece = self.decode_large if self.decode_large is not None and streams >= self.decode_split_streams else self.decode_small
        seconds = piece.constant_s + piece.per_stream_s * streams + (piece.per_token_s + piece.per_token_squared_s * context) * context
        return max(self.decode_floor_s, seconds)

    def at_speed(self, factor: float) -> "EngineProfile":
        """The same engine computing `factor` times as fast; memory, links and start-up stay. Raises ValueError outside 0.01..1000."""
        if not 0.01 <= factor <= 1_000.0:
            raise ValueError(f"profile {self.name}: speed is {factor!r}; allowed: 0.01..1000")

        def piece(one: DecodePiece) -> DecodePiece:
            return DecodePiece(*(getattr(one, field) / factor for field in one.__struct_fields__))

        return msgspec.structs.replace(
            self,
            name=f"{self.name}@{factor:g}",
            prefill_constant_s=self.prefill_constant_s / factor,
            prefill_per_token_s=self.prefill_per_token_s / factor,
            prefill_per_token_squared_s=self.prefill_per_token_squared_s / factor,
            prefill_per_cached_pair_s=self.prefill_per_cached_pair_s / factor,
            prefill_knots=tuple((tokens, seconds / factor) for tokens, seconds in self.prefill_knots),
            decode_floor_s=self.decode_floor_s / factor,
            decode_small=piece(self.decode_small),
            decode_large=None if self.decode_large is None else piece(self.decode_large),
        )

    def transfer_s(self, tokens: int) -> float:
        """Seconds to move the KV of `tokens` tokens over an idle link."""
        return tokens * self.kv_bytes_per_token / self.transfer_bytes_per_s

    def coefficients(self) -> NDArray[np.float64]:
        """The timing as one row of COEFFICIENTS floats, laid out as the names below say; knots padded with infinity."""
        small = self.decode_small
        large = self.decode_large if self.decode_large is not None else small
        row = np.full(COEFFICIENTS, np.inf)
        row[:FIRST_KNOT] = (
            self.prefill_constant_s,
            self.prefill_per_token_s,
            self.prefill_per_token_squared_s,
            self.prefill_per_cached_pair_s,
            self.decode_floor_s,
            self.decode_split_streams if self.decode_large is not None else np.inf,
            self.decode_context_cap_tokens or np.inf,
            *(small.constant_s, small.per_stream_s, small.per_token_s, small.per_token_squared_s),
            *(large.constant_s, large.per_stream_s, large.per_token_s, large.per_token_squared_s),
            self.kv_bytes_per_token / self.transfer_bytes_per_s,
            self.pass_tokens,
            len(self.prefill_knots),
        )
        for index, (tokens, seconds) in enumerate(self.prefill_knots):
            row[FIRST_KNOT + 2 * index : FIRST_KNOT + 2 * index + 2] = tokens, seconds
        return row

    def timed(self, row: Sequence[float]) -> "EngineProfile":
        """This profile with the seconds of such a row, shape (COEFFICIENTS,); memory, links, bounds and start-up stay.

        Raises ValueError for another shape, and for seconds that are not finite.
        """
        if len(row) != COEFFICIENTS:
            raise ValueError(f"profile {self.name}: row has {len(row)} coefficients; allowed: {COEFFICIENTS}")
        count = int(row[KNOT_COUNT]) if 0 <= row[KNOT_COUNT] <= KNOTS else 0
        knots = row[FIRST_KNOT : FIRST_KNOT + 2 * count]
        if not all(map(math.isfinite, (*row[: DECODE_FLOOR + 1], *row[DECODE_SMALL:TRANSFER_TOKEN], *knots))):
            raise ValueError(f"profile {self.name}: row has seconds that are not finite; allowed: finite ones")
        return msgspec.structs.replace(
            self,
            prefill_constant_s=row[PREFILL_CONSTANT],
            prefill_per_token_s=row[PREFILL_TOKEN],
            prefill_per_token_squared_s=row[PREFILL_SQUARE],
            prefill_per_cached_pair_s=row[PREFILL_PAIR],
            prefill_knots=tuple((int(tokens), seconds) for tokens, seconds in zip(knots[::2], knots[1::2], strict=True)),
            decode_floor_s=row[DECODE_FLOOR],
            decode_small=DecodePiece(*row[DECODE_SMALL : DECODE_SMALL + 4]),
            decode_large=None if self.decode_large is None else DecodePiece(*row[DECODE_LARGE : DECODE_LARGE + 4]),
        )


# Columns of `EngineProfile.coefficients()`.
PREFILL_CONSTANT, PREFILL_TOKEN, PREFILL_SQUARE, PREFILL_PAIR = range(4)
DECODE_FLOOR, DECODE_SPLIT, DECODE_CAP = range(4, 7)
DECODE_SMALL = 7  # four columns: constant, stream, token, token²
DECODE_LARGE = 11  # the same four
TRANSFER_TOKEN, PASS_TOKENS, KNOT_COUNT = range(15, 18)
FIRST_KNOT = 18  # pairs (tokens, seconds)
COEFFICIENTS = FIRST_KNOT + 2 * KNOTS


def _interpolate(knots: tuple[tuple[int, float], ...], tokens: float) -> float:
    """Piecewise linear through `knots`; flat before the first, the last slope beyond the last."""
    left = knots[0]
    if tokens <= left[0] or len(knots) == 1:
        return left[1]
    for right in knots[1:]:
        if tokens <= right[0] or right is knots[-1]:
            return left[1] + (right[1] - left[1]) * (tokens - left[0]) / (right[0] - left[0])
        left = right
    raise AssertionError("unreachable: the last knot ends the loop")


def _by_capacity(constant_ms: float, p_ms: float, p_squared_ms: float, capacity_tokens: int) -> DecodePiece:
    """A decode polynomial in p = C ÷ capacity, given in milliseconds."""
    return DecodePiece(
        constant_s=constant_ms / 1e3,
        per_token_s=p_ms / 1e3 / capacity_tokens,
        per_token_squared_s=p_squared_ms / 1e3 / capacity_tokens**2,
    )


_REFERENCE_KV_TOKENS = 16_384 * 64
# Means of the batch-1 rows of Splitwise's measurements (llama2-70b, 8 GPUs), prompt tokens → seconds.
_SPLITWISE_A100 = ((128, 0.0651), (256, 0.06705), (512, 0.09401), (1024, 0.15462), (2048, 0.27416), (4096, 0.65133), (8192, 1.54436))
_SPLITWISE_H100 = ((128, 0.0525), (256, 0.0526), (512, 0.0555), (1024, 0.07831), (2048, 0.13658), (4096, 0.37865), (8192, 0.84838))

PROFILES: dict[str, EngineProfile] = {
    profile.name: profile
    for profile in (
        EngineProfile(
            name="polynomial-reference",
            source="default polynomials of Dynamo's mocker, block 64 tokens, 16,384 blocks; KV bytes of an 8B-class model in bf16",
            kv_tokens=_REFERENCE_KV_TOKENS,
            kv_bytes_per_token=131_072,
            prefill_constant_s=16.50142e-3,
            prefill_per_token_s=1.518344e-5,
            prefill_per_token_squared_s=4.209989e-10,
            decode_floor_s=1e-3,
            decode_small=_by_capacity(5.74, 54.01, -25.74, _REFERENCE_KV_TOKENS),
            decode_context_cap_tokens=_REFERENCE_KV_TOKENS,
        ),
        EngineProfile(
            name="distserve-opt-13b-a100",
            source="fits published with DistServe (OPT-13B, one A100)",
            kv_tokens=66_144,
            kv_bytes_per_token=819_200,
            prefill_constant_s=18.10e-3,
            prefill_per_token_s=0.1019e-3,
            prefill_per_token_squared_s=7.12e-9,
            decode_small=DecodePiece(19.93e-3, 0.0385e-3, 6.27e-7),
            decode_large=DecodePiece(7.17e-3, 0.158e-3, 5.80e-7),
            decode_split_streams=95,
        ),
        EngineProfile(
            name="splitwise-llama2-70b-a100",
            source="Mutinifni/splitwise-sim measurements (MIT), 8 × A100-80GB; KV capacity estimated: 0.9 × 640 GB - 140 GB of weights",
            kv_tokens=1_330_000,
            kv_bytes_per_token=327_680,
            prefill_knots=_SPLITWISE_A100,
            decode_small=DecodePiece(44.2e-3, 0.237e-3, 3.0e-7),
        ),
        EngineProfile(
            name="splitwise-llama2-70b-h100",
            source="Mutinifni/splitwise-sim measurements (MIT), 8 × H100-80GB; KV capacity estimated: 0.9 × 640 GB - 140 GB of weights",
            kv_tokens=1_330_000,
            kv_bytes_per_token=327_680,
            prefill_knots=_SPLITWISE_H100,
            decode_small=DecodePiece(29.9e-3, 0.223e-3, 1.62e-7),
        ),
        EngineProfile(
            name="qwen3-32b-h100x2",
            source="an approximation from published peaks; for comparisons among Penstock's own policies only",
            kv_tokens=307_328,
            kv_bytes_per_token=262_144,
            start_s=100.0,
            prefill_constant_s=12e-3,
            prefill_per_token_s=1 / 20_480,
            prefill_per_token_squared_s=2.0e-10,
            decode_small=DecodePiece(14e-3, 0.16e-3, 5.5e-8),
        ),
    )
}
"""The declared profiles by name."""

DEFAULT_PROFILE = PROFILES["polynomial-reference"]


def profile_named(name: str) -> EngineProfile:
    """The declared profile of that name. Raises ValueError listing the allowed names."""
    try:
        return PROFILES[name]
    except KeyError:
        raise ValueError(f"profile is {name!r}; allowed: {', '.join(sorted(PROFILES))}") from None


def is_finite_positive(seconds: float) -> bool:
    """Whether a measured duration can be learned from."""
    return math.isfinite(seconds) and seconds > 0.0
