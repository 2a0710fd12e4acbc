"""Which endpoints may serve which requests: live, not draining, capability, adapter, not tried, KV handed over alike.

The scheduler makes a cohort for every kind of request it meets and keeps it until the endpoints change. Load and cost
are no matter here.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from penstock_core.endpoint import Endpoint, Role

from penstock_router import columns as col
from penstock_router.beliefs import Beliefs

Rows = NDArray[np.int64]


class Wanted(NamedTuple):
    """What a request asks of an endpoint."""

    capability: str
    adapter: str
    undivided: bool
    excluded: frozenset[str]


class Cohort(NamedTuple):
    """Rows that qualify, each array of shape (endpoints,)."""

    wholes: Rows
    """May prefill and decode the request: role `both`; decode endpoints that can prefill too where nothing else can."""
    prefills: Rows
    """Dedicated prefill endpoints with a decode endpoint that can take their KV."""
    starters: Rows
    """`wholes` and `prefills`: where a request may begin."""
    pair_prefills: Rows
    """May be the prefill side of a pair: `prefills`, and `both`. Empty where no pair has to be weighed against a whole."""
    pair_decodes: Rows
    decodes: Rows
    """Where what is prefilled elsewhere may be decoded, whatever its KV group."""
    divided: frozenset[int]
    """`prefills` as a set: what begins there goes elsewhere to decode."""
    fallback: bool
    """Decode endpoints prefill because no prefill endpoint is live."""


def fits(endpoint: Endpoint, wanted: Wanted) -> bool:
    """Whether the endpoint can serve such a request at all, whatever its role."""
    record = endpoint.record
    return (
        wanted.capability in record.capabilities
        and (not wanted.adapter or wanted.adapter in record.adapters)
        and record.id not in wanted.excluded
    )


def gather(beliefs: Beliefs, live: Mapping[int, Endpoint], wanted: Wanted) -> Cohort:
    """The cohort among the `live` rows."""
    both: list[int] = []
    prefill: list[int] = []
    decode: list[int] = []
    for r, endpoint in live.items():
        if fits(endpoint, wanted):
            role = endpoint.record.role
            (both if role is Role.BOTH else prefill if role is Role.PREFILL else decode).append(r)
    groups = beliefs.rows[:, col.GROUP]
    takers = {groups[r] for r in (*both, *decode)} - {-1.0}
    givers = {groups[r] for r in (*both, *prefill)} - {-1.0}
    prefill = [] if wanted.undivided else [r for r in prefill if groups[r] in takers]
    fallback = not wanted.undivided and not prefill and not both
    wholes = both + [r for r in decode if live[r].record.serves_whole] if wanted.undivided or fallback else both
    paired = bool(both) and not wanted.undivided and bool(prefill or any(groups[r] in givers for r in decode))
    return Cohort(
        _rows(wholes),
        _rows(prefill),
        _rows(wholes + prefill),
        _rows(both + prefill if paired else ()),
        _rows(both + decode if paired else ()),
        _rows(both + decode),
        frozenset(prefill),
        fallback,
    )


def takers(beliefs: Beliefs, live: Mapping[int, Endpoint], wanted: Wanted, group: float) -> Rows:
    """Rows that can decode a prompt prefilled in KV group `group`."""
    groups = beliefs.rows[:, col.GROUP]
    return _rows(r for r, one in live.items() if one.record.role.decodes and groups[r] == group and fits(one, wanted))


def _rows(rows: Iterable[int]) -> Rows:
    return np.array(sorted(rows), dtype=np.int64)
