"""What a decision looked at, written out for `explain`: every candidate with the terms of its cost.

Policies call it right after the kernel, whose last columns still hold the terms. It decides nothing.
"""

import math

from penstock_core.endpoint import Endpoint
from penstock_core.placement import Candidate

from penstock_router import columns as col
from penstock_router.beliefs import Beliefs
from penstock_router.cohorts import Rows

_TERMS = {
    "own_miss": col.OWN_MISS,
    "others_miss": col.OTHERS_MISS,
    "others_wait": col.OTHERS_WAIT,
    "itl_miss": col.ITL_MISS,
    "work": col.WORK,
}


def weighed(beliefs: Beliefs, rows: Rows, divided: bool) -> tuple[Candidate, ...]:
    """Candidates of `target-misses`; a prefill side without any decode side is left out, as is one beyond the shortlist.

    `ttft` is the predicted TTFT over its target: what the cost holds beside the other terms (and `no_room`, a million).
    """
    found = []
    for r in rows.tolist():
        row, endpoint = beliefs.row_cells[r * col.ROW : (r + 1) * col.ROW], _known(beliefs, r)
        partner = int(row[col.PARTNER]) if divided else -1
        cost = row[col.COST]
        if not math.isfinite(cost):
            continue
        terms = {name: row[column] for name, column in _TERMS.items()}
        terms["ttft"] = cost - sum(terms.values())
        found.append(
            Candidate(
                decode="" if divided and partner < 0 else _known(beliefs, partner).id if divided else endpoint.id,
                prefill=endpoint.id if divided else None,
                hit_tokens=int(row[col.HIT_TOKENS]),
                ttft_s=row[col.TTFT_S],
                itl_s=row[col.ITL_S],
                terms=terms,
                cost=cost,
            )
        )
    return tuple(found)


def counted(beliefs: Beliefs, rows: Rows, divided: frozenset[int]) -> tuple[Candidate, ...]:
    """Candidates of a policy that counts requests; it predicts nothing, so its seconds are 0."""
    found = []
    for r in rows.tolist():
        row, one = beliefs.row_cells[r * col.ROW : (r + 1) * col.ROW], _known(beliefs, r)
        away = r in divided
        running = row[col.RUNNING]
        terms = {"running": running}
        found.append(
            Candidate("" if away else one.id, one.id if away else None, int(row[col.HIT_TOKENS]), 0.0, 0.0, terms=terms, cost=running)
        )
    return tuple(found)


def _known(beliefs: Beliefs, r: int) -> Endpoint:
    endpoint = beliefs.endpoints[r]
    if endpoint is None:
        raise LookupError(f"row {r} has no endpoint")
    return endpoint
