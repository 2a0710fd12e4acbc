"""What the Pods of a gang tell one another, and what a following Pod does about it: values and pure decisions.

A gang is one replica that spans Pods. `gang_leader` runs in the first (rank 0), `gang_follower` in the others; `gang_page` carries what
the leader says. Nothing here knows Ray's calls or HTTP.
"""

from enum import StrEnum

import msgspec

RAY_OBJECT_STORE_BYTES = 80 * 1024 * 1024
"""Ray's least, nearly: nothing of ours goes through the object store."""
_SILENT_POLLS = 5


def rank_resource(rank: int) -> str:
    """Ray's name for the place of one rank: each Pod offers exactly one, so a rank can only run in its own Pod."""
    return f"penstock-rank-{rank}"


class GangNews(msgspec.Struct, frozen=True, kw_only=True):
    """What the leader says of the gang, now."""

    incarnation: str
    """Another incarnation is another Ray: whoever belongs to the old one has to join anew."""
    ray_address: str
    """Where Ray's head is, `host:port`; empty until it is up."""
    page: str
    """The leader's page by its address: names may stop resolving while a gang that was deleted still drains."""
    ready: bool
    """Every rank runs and the engine serves."""
    drained: bool
    """The leader is leaving and nothing runs any more: every Pod may end."""


class Joined(msgspec.Struct, frozen=True):
    """The Ray that this Pod has joined, and whether its part here still runs."""

    incarnation: str
    alive: bool


class Step(StrEnum):
    """What a following Pod does next."""

    WAIT = "wait"
    JOIN = "join"
    STAY = "stay"


def next_step(joined: Joined | None, news: GangNews | None) -> Step:
    """`news` None: the leader does not answer. A part that still runs is kept then, for a leader that is only slow keeps its gang."""
    here = joined is not None and joined.alive
    if news is None or not news.ray_address:
        return Step.STAY if here else Step.WAIT
    return Step.STAY if here and joined is not None and joined.incarnation == news.incarnation else Step.JOIN


def serves(joined: Joined | None, news: GangNews | None) -> bool:
    """Whether a following Pod is ready: it is when its gang is."""
    return news is not None and news.ready and next_step(joined, news) is Step.STAY


def may_end(joined: Joined | None, news: GangNews | None, silent_polls: int) -> bool:
    """Whether a following Pod that was told to end may do so: nothing of this gang runs any more."""
    if joined is None or not joined.alive:
        return True
    if news is None:
        return silent_polls >= _SILENT_POLLS
    return news.drained or news.incarnation != joined.incarnation
