"""Finished prefills whose blocks wait for a decode worker: pinned until taken, or until their time is over.

The engine adds one when a prefill leg ends, the block server begins and finishes it, the engine's loop lets old ones
expire. Pure: `now` (seconds, monotonic) is passed in. A claim whose puller vanished is there for another one until its
deadline, so a decode leg that is tried elsewhere finds its KV.
"""

from penstock_worker.engines.sim.blocks import BlockStore


class Claim:
    """Blocks of one prefill, each referenced once."""

    __slots__ = ("begun", "blocks", "deadline_s", "tokens")

    def __init__(self, blocks: list[int], tokens: int, deadline_s: float) -> None:
        self.blocks = blocks
        self.tokens = tokens
        self.deadline_s = deadline_s
        self.begun = False


class Claims:
    """All claims of one engine, by the request id given out with them."""

    def __init__(self, store: BlockStore, claim_seconds: float) -> None:
        self._store = store
        self._claim_seconds = claim_seconds
        self._claims: dict[str, Claim] = {}
        self._serial = 0
        self.expired_total = 0

    @property
    def unclaimed_tokens(self) -> int:
        return sum(claim.tokens for claim in self._claims.values())

    def __len__(self) -> int:
        return len(self._claims)

    def add(self, request_id: str, blocks: list[int], tokens: int, now: float) -> str:
        """Pin `blocks` (the references pass over); the id under which they can be claimed."""
        self._serial += 1  # a prefill tried twice here under one request id makes two claims
        name = f"{request_id}-{self._serial}"
        self._claims[name] = Claim(blocks, tokens, now + self._claim_seconds)
        return name

    def begin(self, name: str, now: float) -> Claim | None:
        """Take the claim; None if it is unknown, taken or over. `finish` or `give_up` must follow."""
        claim = self._claims.get(name)
        if claim is None or claim.begun or claim.deadline_s <= now:
            return None
        claim.begun = True
        return claim

    def finish(self, name: str) -> None:
        """The blocks have been copied: unpin them. They stay cached."""
        claim = self._claims.pop(name, None)
        if claim is not None:
            self._store.release(claim.blocks)

    def give_up(self, name: str) -> None:
        """The puller is gone; another may come until the deadline."""
        claim = self._claims.get(name)
        if claim is not None:
            claim.begun = False

    def expire(self, now: float) -> int:
        """Unpin what nobody claimed in time; how many that were. A claim being pulled is left to its puller."""
        over = [name for name, claim in self._claims.items() if claim.deadline_s <= now and not claim.begun]
        for name in over:
            self.finish(name)
        self.expired_total += len(over)
        return len(over)

    def next_deadline_s(self) -> float | None:
        """When `expire` is to be called next; None while nothing waits."""
        return min((claim.deadline_s for claim in self._claims.values() if not claim.begun), default=None)

    def clear(self) -> None:
        """Unpin everything."""
        for name in list(self._claims):
            self.finish(name)
