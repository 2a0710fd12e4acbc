"""How many replicas of which accelerator type serve a workload at the least price: an integer programme, solved by HiGHS.

The method is that of Mélange (Griggs et al., 2024): requests in buckets of like sizes, each bucket in slices, a slice goes to one type, and
a type's replicas must carry the slices it is given. Pure but for the solver, which comes with the extra `plan`; `penstock plan --gpu-types`
calls it and checks what comes out in the simulator.
"""

import itertools
import math
from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray
from penstock_core.errors import PenstockError
from penstock_core.profile import EngineProfile
from penstock_core.slo import Slo

from penstock_autoscaler.capacity import most_rate

SLICES = 8
_EDGE = 2.0
"""Ratio of a bucket's upper edge to its lower one."""
_SOLVE_S = 20.0
_GAP = 1e-4


class SolverMissing(PenstockError):
    """HiGHS is not installed; install the extra."""


class NoMix(PenstockError):
    """No number of the offered types serves the workload within the targets; the message says which requests."""


class Offer(msgspec.Struct, frozen=True, kw_only=True):
    """One accelerator type, with as many accelerators as a replica has."""

    name: str
    profile: EngineProfile
    price: float
    """Of one replica for an hour, in any currency."""
    most: int = 1_024
    """Replicas to be had."""


class Bucket(msgspec.Struct, frozen=True, kw_only=True):
    """Requests of like sizes; sizes are means."""

    prompt_tokens: float
    output_tokens: float
    rate: float
    """Requests a second."""


class TypeMix(msgspec.Struct, frozen=True, kw_only=True):
    """Replicas by offer name, and what they cost an hour."""

    replicas: dict[str, int]
    price: float
    assigned: tuple[tuple[float, ...], ...]
    """Share of each bucket's requests by offer, in the order given."""


def buckets(prompt_tokens: NDArray[np.int64], output_tokens: NDArray[np.int64], rate: float) -> list[Bucket]:
    """Requests of these sizes, `rate` a second in all, by powers of _EDGE of both sizes."""
    keys = np.stack([np.log(one) // math.log(_EDGE) for one in (prompt_tokens, output_tokens)], axis=1).astype(np.int64)
    _, index, counts = np.unique(keys, axis=0, return_inverse=True, return_counts=True)
    prompts, outputs = (np.bincount(index.ravel(), weights=one) / counts for one in (prompt_tokens, output_tokens))
    return [
        Bucket(prompt_tokens=float(prompt), output_tokens=float(output), rate=rate * float(count) / len(keys))
        for prompt, output, count in zip(prompts, outputs, counts, strict=True)
    ]


def loads(asked: Sequence[Bucket], offers: Sequence[Offer], slo: Slo) -> NDArray[np.float64]:
    """Replicas of each offer that each bucket would keep full, shape (buckets, offers); infinite where one cannot meet the targets."""
    full = np.full((len(asked), len(offers)), np.inf)
    for b, bucket in enumerate(asked):
        for g, offer in enumerate(offers):
            most = most_rate(offer.profile, bucket.prompt_tokens, bucket.output_tokens, slo)
            full[b, g] = bucket.rate / most if most > 0.0 else np.inf
    return full


def cheapest(full: NDArray[np.float64], offers: Sequence[Offer], slices: int = SLICES) -> TypeMix:
    """The least price at which every slice of every bucket has its place. Raises NoMix, SolverMissing.

    Slices of a bucket are alike, so the programme counts them by type instead of placing each one: the same optimum, fewer symmetries.
    """
    try:
        import highspy
    except ImportError:
        raise SolverMissing("--gpu-types needs HiGHS; install the extra `plan`: pip install 'penstock[plan]'") from None
    unplaced = [b for b in range(len(full)) if not np.isfinite(full[b]).any()]
    if unplaced:
        raise NoMix(f"{len(unplaced)} of {len(full)} sizes of requests meet the targets on none of {', '.join(one.name for one in offers)}")
    model = highspy.Highs()  # type: ignore[no-untyped-call]
    model.silent()
    model.setOptionValue("time_limit", _SOLVE_S)
    model.setOptionValue("mip_rel_gap", _GAP)
    replicas = [model.addIntegral(0, offer.most, obj=offer.price) for offer in offers]
    placed = {
        (b, g): model.addIntegral(0, slices) for b, g in itertools.product(range(len(full)), range(len(offers))) if np.isfinite(full[b, g])
    }
    for b in range(len(full)):
        model.addConstr(sum(placed[b, g] for g in range(len(offers)) if (b, g) in placed) == slices)
    for g in range(len(offers)):
        model.addConstr(sum(placed[b, g] * float(full[b, g] / slices) for b in range(len(full)) if (b, g) in placed) <= replicas[g])
    model.minimize()
    if model.getInfo().primal_solution_status != highspy.SolutionStatus.kSolutionStatusFeasible:
        raise NoMix(f"no mix within {', '.join(f'{one.most} of {one.name}' for one in offers)} carries the workload")
    counts = [round(model.variableValue(one)) for one in replicas]
    assigned = tuple(
        tuple(model.variableValue(placed[b, g]) / slices if (b, g) in placed else 0.0 for g in range(len(offers))) for b in range(len(full))
    )
    price = sum(count * offer.price for count, offer in zip(counts, offers, strict=True))
    return TypeMix(replicas={offer.name: count for offer, count in zip(offers, counts, strict=True)}, price=price, assigned=assigned)
