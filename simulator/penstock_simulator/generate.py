"""Made-up traffic: Poisson, bursts, ramps, shared prefixes, conversations and agent loops, all from one seed.

`penstock simulate --generate` and the benchmarks call `generate`. Lengths are log-normal around their means. It makes
Workloads and knows nothing of how they are replayed.
"""

from collections.abc import Callable, Iterator

import msgspec
import numpy as np
from numpy.random import Generator

from penstock_simulator.workload import BLOCK_TOKENS, Asked, Workload, assemble

_LENGTH_SIGMA = 0.6
"""Deviation of the logarithm of lengths."""
_LONGEST_TOKENS = 131_072


class Traffic(msgspec.Struct, frozen=True, kw_only=True):
    """What to make; fields that a kind does not use are ignored by it, and refused by `parse_traffic`."""

    kind: str
    requests: int = 2_000
    """How many there are."""
    rate: float = 8.0
    """Requests a second on average (`sessions` and `agents`: counting every turn)."""
    prompt_tokens: int = 2_000
    """Mean of a prompt; of what a turn adds to a conversation."""
    output_tokens: int = 250
    """Mean of an answer."""
    seed: int = 0
    """Another seed is other traffic of the same kind."""
    cv: float = 4.0
    """Deviation of the gaps between arrivals ÷ their mean; 1: as random as `poisson`."""
    peak: float = 3.0
    """Rate in the middle ÷ rate at both ends. The mean is `rate`: with `rate=8,peak=3` it goes from 4 up to 12 and back."""
    groups: int = 16
    """How many different prefixes there are."""
    prefix_tokens: int = 2_048
    """Their length, on top of the prompt."""
    turns: int = 6
    """Requests that follow one another."""
    gap_s: float = 10.0
    """Mean time that a reader takes; of it a tool of `agents` takes a fifth. Exponential."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"generate is {self.kind!r}; allowed: {', '.join(KINDS)}")
        for name, (least, most, _) in RANGES.items():
            if not least <= getattr(self, name) <= most:
                raise ValueError(f"generate: {name} is {getattr(self, name)!r}; {_allowed(name)}")


RANGES: dict[str, tuple[float, float, str]] = {
    "requests": (1, 10_000_000, ""),
    "rate": (1e-3, 1e6, "requests a second"),
    "prompt_tokens": (1, _LONGEST_TOKENS, "tokens"),
    "output_tokens": (1, _LONGEST_TOKENS, "tokens"),
    "seed": (0, 2**32 - 1, ""),
    "cv": (0.1, 20.0, ""),
    "peak": (1.0, 100.0, "times"),
    "groups": (1, 100_000, ""),
    "prefix_tokens": (0, _LONGEST_TOKENS, "tokens"),
    "turns": (1, 1_000, "requests"),
    "gap_s": (0.0, 1e5, "seconds"),
}
"""What is allowed for each number: lowest, highest, unit."""
_OF_ALL = ("requests", "rate", "prompt_tokens", "output_tokens", "seed")
_OWN = {
    "bursts": ("cv",),
    "ramp": ("peak",),
    "shared-prefix": ("groups", "prefix_tokens"),
    "sessions": ("turns", "gap_s"),
    "agents": ("groups", "prefix_tokens", "turns", "gap_s"),
}


def settings_of(kind: str) -> tuple[str, ...]:
    """Names of the settings that mean something for it."""
    return _OF_ALL + _OWN.get(kind, ())


def parse_traffic(text: str) -> Traffic:
    """`kind` or `kind:name=value,name=value`. Raises ValueError naming field, value and what is allowed."""
    kind, _, rest = text.partition(":")
    if kind not in KINDS:
        raise ValueError(f"generate is {kind!r}; allowed: {', '.join(KINDS)}")
    defaults = {field.name: field.default for field in msgspec.structs.fields(Traffic)}
    given: dict[str, float] = {}
    for pair in filter(None, rest.split(",")):
        name, equals, value = pair.partition("=")
        if not equals or name not in settings_of(kind):
            shown = ", ".join(f"{one}={defaults[one]:g}" for one in settings_of(kind))
            raise ValueError(f"generate: {pair!r}; allowed for {kind}: {shown} (with their defaults), commas between")
        try:
            given[name] = int(value) if isinstance(defaults[name], int) else float(value)
        except ValueError:
            whole = "a whole number, " if isinstance(defaults[name], int) else ""
            raise ValueError(f"generate: {name} is {value!r}; {_allowed(name).replace(': ', f': {whole}', 1)}") from None
    return Traffic(kind=kind, **given)  # type: ignore[arg-type]


def _allowed(name: str) -> str:
    least, most, unit = RANGES[name]
    return f"allowed: {least:g} to {most:.10g} {unit}".rstrip()


def generate(traffic: Traffic) -> Workload:
    """The workload; the same traffic gives the same one."""
    rng = np.random.default_rng(traffic.seed)
    asked, shared_blocks = KINDS[traffic.kind](traffic, rng)
    return assemble(f"{traffic.kind} (seed {traffic.seed})", asked, shared_blocks)


Made = tuple[list[Asked], int]
"""Requests, and how many block ids they share among them."""


def _poisson(traffic: Traffic, rng: Generator) -> Made:
    """Independent requests at an even rate: gaps are exponential."""
    return _independent(traffic, rng, rng.exponential(1.0 / traffic.rate, traffic.requests).cumsum().tolist()), 0


def _bursts(traffic: Traffic, rng: Generator) -> Made:
    """Independent requests that come in bursts: gaps are gamma, their deviation is `cv` times their mean."""
    shape = 1.0 / traffic.cv**2
    gaps = rng.gamma(shape, 1.0 / (traffic.rate * shape), traffic.requests)
    return _independent(traffic, rng, gaps.cumsum().tolist()), 0


def _ramp(traffic: Traffic, rng: Generator) -> Made:
    """The rate rises evenly to `peak` times its start in the middle and falls again; its mean is `rate`."""
    low = 2.0 * traffic.rate / (1.0 + traffic.peak)
    span = traffic.requests / traffic.rate
    times: list[float] = []
    now = 0.0
    while len(times) < traffic.requests:
        now += rng.exponential(1.0 / (low * traffic.peak))
        height = 1.0 - abs(2.0 * (now % span) / span - 1.0)
        if rng.random() * traffic.peak < 1.0 + (traffic.peak - 1.0) * height:
            times.append(now)
    return _independent(traffic, rng, times), 0


def _independent(traffic: Traffic, rng: Generator, times: list[float]) -> list[Asked]:
    prompts, outputs = _lengths(traffic.prompt_tokens, len(times), rng), _lengths(traffic.output_tokens, len(times), rng)
    return [Asked(now, prompt, output, ()) for now, prompt, output in zip(times, prompts, outputs, strict=True)]


def _shared_prefix(traffic: Traffic, rng: Generator) -> Made:
    """Poisson arrivals whose prompts begin with one of `groups` prefixes, popular ones more often (1/rank)."""
    blocks = traffic.prefix_tokens // BLOCK_TOKENS
    weights = 1.0 / np.arange(1, traffic.groups + 1)
    chosen = rng.choice(traffic.groups, traffic.requests, p=weights / weights.sum()).tolist()
    plain, _ = _poisson(traffic, rng)
    return [
        msgspec.structs.replace(
            one, prompt_tokens=one.prompt_tokens + traffic.prefix_tokens, blocks=range(group * blocks, group * blocks + blocks)
        )
        for one, group in zip(plain, chosen, strict=True)
    ], traffic.groups * blocks


def _sessions(traffic: Traffic, rng: Generator) -> Made:
    """Conversations: every turn sends all that was said before and something new, after a reader's pause."""
    return _growing(traffic, rng, prefixes=0, gap_s=traffic.gap_s)


def _agents(traffic: Traffic, rng: Generator) -> Made:
    """Agent loops: conversations that begin with a shared prefix and go on after a tool's answer."""
    return _growing(traffic, rng, prefixes=traffic.groups, gap_s=traffic.gap_s / 5.0)


def _growing(traffic: Traffic, rng: Generator, prefixes: int, gap_s: float) -> Made:
    blocks = traffic.prefix_tokens // BLOCK_TOKENS if prefixes else 0
    prefix_tokens = traffic.prefix_tokens if prefixes else 0
    fresh = prefixes * blocks
    asked: list[Asked] = []
    for start in _starts(traffic, rng):
        group = int(rng.integers(prefixes)) if prefixes else 0
        chain = list(range(group * blocks, group * blocks + blocks))
        said = prefix_tokens
        many = min(traffic.turns, traffic.requests - len(asked))
        new, outputs = _lengths(traffic.prompt_tokens, many, rng), _lengths(traffic.output_tokens, many, rng)
        for turn in range(many):
            prompt = said + new[turn]
            said = prompt + outputs[turn]
            chain += range(fresh, fresh + said // BLOCK_TOKENS - len(chain))
            fresh = max(fresh, chain[-1] + 1) if chain else fresh
            follows = len(asked) - 1 if turn else -1
            pause_s = float(rng.exponential(gap_s)) if turn and gap_s else 0.0
            asked.append(Asked(start, prompt, outputs[turn], tuple(chain), follows, pause_s))
    return asked, fresh


def _starts(traffic: Traffic, rng: Generator) -> Iterator[float]:
    now = 0.0
    for _ in range(-(-traffic.requests // traffic.turns)):
        now += float(rng.exponential(traffic.turns / traffic.rate))
        yield now


def _lengths(mean: int, count: int, rng: Generator) -> list[int]:
    drawn = rng.lognormal(np.log(mean) - _LENGTH_SIGMA**2 / 2.0, _LENGTH_SIGMA, count)
    lengths: list[int] = np.clip(np.rint(drawn), 1, _LONGEST_TOKENS).astype(int).tolist()
    return lengths


KINDS: dict[str, Callable[[Traffic, Generator], Made]] = {
    "poisson": _poisson,
    "bursts": _bursts,
    "ramp": _ramp,
    "shared-prefix": _shared_prefix,
    "sessions": _sessions,
    "agents": _agents,
}
