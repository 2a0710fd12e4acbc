"""What an autoscaler knows of a model beside its brain's memory: how far traffic has been decided on, what routers and replicas have said.

`loop` and `penstock plan` each keep one Knowledge a model, hand it what they have read, and get the Observation to decide on. It asks
nobody and decides nothing; Saved is the form in which the loop keeps it, and the brain's memory with it, for whoever goes on.
"""

from collections.abc import Sequence

import msgspec
from penstock_core.traffic import Window

from penstock_autoscaler.fits import Fits, HeardFit
from penstock_autoscaler.observation import Observation, Start
from penstock_autoscaler.ports import Fleet
from penstock_autoscaler.settings import ScalerSettings
from penstock_autoscaler.starts import Starts


class Saved(msgspec.Struct):
    """What goes into the store."""

    since_s: float
    """Up to where traffic has been decided on, on the clock of the Windows."""
    brain: bytes
    fits: list[HeardFit] = []
    starts: dict[str, list[Start]] = {}
    settings: ScalerSettings | None = None
    """The brain's, for who would foretell it; another one goes on with its own."""


def decode_saved(kept: bytes) -> Saved:
    """What a loop kept. Raises msgspec.DecodeError for anything else."""
    return msgspec.msgpack.decode(kept, type=Saved)


class Knowledge:
    """State: how far traffic has been decided on, the latest word on each pool's engines, and how its replicas started."""

    def __init__(self, saved: Saved | None = None) -> None:
        """None: nothing is remembered, and all traffic that is kept is still to be decided on."""
        self.since_s = saved.since_s if saved is not None else 0.0
        self._fits = Fits(saved.fits if saved is not None else ())
        self._starts = Starts(saved.starts if saved is not None else None)

    def observed(self, now_s: float, fleet: Fleet, traffic: Sequence[Window]) -> Observation:
        """What to decide on. `traffic`: all intervals after since_s, oldest first; those that have been handed in before may come again."""
        for one in traffic:
            self._fits.hear(one)
        self._starts.see(fleet.replicas)
        return Observation(
            now_s=now_s,
            target=fleet.target,
            pools=self._starts.measured(self._fits.corrected(fleet.pools, now_s)),
            replicas=fleet.replicas,
            earlier=tuple(traffic[:-1]),
            traffic=traffic[-1] if traffic else None,
            paused=fleet.paused,
            overridden=fleet.overridden,
        )

    def decided(self, seen: Observation) -> None:
        """The brain has been given it: its traffic is not to be handed in again."""
        if seen.traffic is not None:
            self.since_s = seen.traffic.until_s

    def saved(self, brain: bytes, settings: ScalerSettings, now_s: float) -> bytes:
        """A Saved as MessagePack; `brain`: its memory after all that was `decided`."""
        return msgspec.msgpack.encode(Saved(self.since_s, brain, self._fits.kept(now_s), self._starts.kept(), settings))
