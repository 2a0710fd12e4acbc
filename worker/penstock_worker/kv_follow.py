"""Follows an engine's KV on the event loop: tells the translator of requests and events, and the publisher of changes.

`host` has one per engine. Rendering and hashing of long prompts run in one thread; the translator's state is touched on the
loop only. It knows no HTTP and no Redis: whom changes go to is behind the Publishing protocol.
"""

import asyncio
import logging
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import count, pairwise
from typing import Protocol

import msgspec
from penstock_core.errors import BadInput
from penstock_core.kv_events import KvState

from penstock_worker.answer_text import answer_counts, answer_text
from penstock_worker.engine import BlockEvent, Engine, EngineCall, EngineInfo
from penstock_worker.kv_agreement import Agreement, Told
from penstock_worker.kv_chain import CHAT_PATH, TEXT_PATH, Chain, ChainRules, chain_of, extended_chain, next_turn
from penstock_worker.kv_translate import Translator

log = logging.getLogger(__name__)

BLOCKS_KEPT_FACTOR = 4
"""Nodes of the translator's tree for each block that the engine can hold."""
MOST_ANSWERS_WAITING = 64
"""Answers whose text waits to be laid out; beyond, an answer's text is not followed (its next turn is found one turn later)."""
_PULLED = b'"kv_transfer_params"'
"""Bodies with it may count fetched tokens as cached ones."""
_UNREADABLE = (msgspec.MsgspecError, UnicodeError, ValueError, TypeError, KeyError, OverflowError)


class Publishing(Protocol):
    """Whom changes go to; all calls but `leave` are synchronous and never wait for the shared store."""

    def publish(self, added: Iterable[int], removed: Iterable[int]) -> None: ...

    def cleared(self) -> None: ...

    def state(self) -> KvState: ...

    async def leave(self) -> None: ...


class KvFollower:
    """See the module. `untold` counts prompts and answers that could not be followed."""

    def __init__(self, engine: Engine, info: EngineInfo, rules: ChainRules, publishing: Publishing, *, inline_body_bytes: int) -> None:
        self.translator = Translator(rules, max_blocks=BLOCKS_KEPT_FACTOR * max(64, info.kv_total_tokens // info.block_tokens))
        self.untold = 0
        self.agreement = Agreement()
        self._told: dict[str, Told] = {}
        self._engine = engine
        self._rules = rules
        self._adapters = frozenset(info.adapters)
        self._publishing = publishing
        self._inline_bytes = inline_body_bytes
        self._loop = asyncio.get_running_loop()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="kv-chains")
        self._numbers = count(1)
        self._finishing: set[asyncio.Task[None]] = set()
        self._flush_due = False
        self._withheld = False
        engine.on_block_events(self.take_events)

    @property
    def pending(self) -> int:
        """Answers whose text is still being laid out: a few milliseconds after their end."""
        return len(self._finishing)

    async def begin(self, call: EngineCall, model: str) -> str | None:
        """Lay the call's prompt out before the engine runs it; gives a name for `hit_chunks`, `finish` and `forget`.

        None for a request that has no single prompt. Raises BadInput, as the engine would.
        """
        if call.path not in (CHAT_PATH, TEXT_PATH):
            return None
        adapter = model if model in self._adapters else ""
        if len(call.body) > self._inline_bytes:
            chain = await self._loop.run_in_executor(self._thread, self._chain, call, adapter)
        else:
            chain = self._chain(call, adapter)
        if chain is None:
            self.untold += 1
            return None
        name = str(next(self._numbers))
        self.translator.begin(name, chain)
        if _PULLED not in call.body:
            widest = max((after - before for before, after in pairwise([0, *chain.tokens_at])), default=0)
            slack = widest + self._rules.block_tokens
            self._told[name] = Told(chain.tokens, self.translator.held_tokens(name), slack)
        self._changed()
        return name

    def hit_chunks(self, name: str | None, hit_tokens: int) -> int:
        """Leading chunks of the prompt that the engine's `hit_tokens` cover."""
        return 0 if name is None else self.translator.hit_chunks(name, hit_tokens)

    def _compare(self, name: str, pieces: Sequence[bytes], streamed: bool) -> None:
        """Before the answer's own blocks are followed: the engine's counts beside ours."""
        told = self._told.pop(name, None)
        counts = None if told is None else answer_counts(pieces, streamed=streamed)
        if told is not None and counts is not None and not self.agreement.compare(told, counts.prompt_tokens, counts.cached_tokens):
            log.debug("counts disagree", extra={"facts": {"told": msgspec.to_builtins(told), "counted": counts._asdict()}})

    def finish(self, name: str, call: EngineCall, model: str, pieces: Sequence[bytes], *, streamed: bool) -> None:
        """The answer went out whole: follow its text too, in the background."""
        self._compare(name, pieces, streamed)
        if self.pending >= MOST_ANSWERS_WAITING:
            self.untold += 1
            self.forget(name)
            return
        task = self._loop.create_task(self._finish(name, call, model if model in self._adapters else "", pieces, streamed))
        self._finishing.add(task)
        task.add_done_callback(self._finishing.discard)

    def forget(self, name: str | None) -> None:
        """The request ended without a whole answer."""
        if name is not None:
            self._told.pop(name, None)
            self.translator.forget(name)
            self._changed()

    def take_events(self, events: Sequence[BlockEvent]) -> None:
        """The engine's listener."""
        self.translator.apply(events)
        self._changed()

    def flush(self) -> None:
        """Hand all changes so far to the publisher; of a worker that is not trusted it knows nothing."""
        self._flush_due = False
        changes = self.translator.take()
        if self.agreement.trusted is self._withheld:
            return self._turn()
        if self._withheld:
            return
        if changes.cleared:
            self._publishing.cleared()
        if changes.added or changes.removed:
            self._publishing.publish(changes.added, changes.removed)

    def tell(self, publishing: Publishing) -> None:
        """Whom changes go to from now on; it knows of all that is held already."""
        self._publishing = publishing

    async def aclose(self) -> None:
        """End background work."""
        for task in list(self._finishing):
            task.cancel()
        if self._finishing:
            await asyncio.wait(self._finishing)
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _turn(self) -> None:
        """Trust was lost, or is there again: take all chunks out of the index, or put them in as they are now."""
        self._withheld = not self.agreement.trusted
        log.warning("prefix hits are %s", "no longer promised: too many were not found" if self._withheld else "promised again")
        if self._withheld:
            self._publishing.cleared()
        else:
            self._publishing.publish(self.translator.held_keys(), ())

    def _changed(self) -> None:
        """Changes of one turn of the loop go out together."""
        if not self._flush_due:
            self._flush_due = True
            self._loop.call_soon(self.flush)

    def _chain(self, call: EngineCall, adapter: str) -> Chain | None:
        rendering = self._engine.render(call.path, call.body)
        if rendering is None:
            return None
        try:
            return chain_of(call.path, call.body, rendering, self._rules, salt=call.salt, adapter=adapter)
        except _UNREADABLE as error:
            log.debug("a prompt cannot be followed: %s", error)
            return None

    async def _finish(self, name: str, call: EngineCall, adapter: str, pieces: Sequence[bytes], streamed: bool) -> None:
        extended = None
        room = self.translator.room_tokens(name)
        try:
            if len(call.body) > self._inline_bytes:
                extended = await self._loop.run_in_executor(self._thread, self._extended, call, adapter, pieces, streamed, room)
            else:  # the client may come back with its next turn within a millisecond
                extended = self._extended(call, adapter, pieces, streamed, room)
        except Exception:  # a task's top: nobody awaits it
            log.exception("an answer's text cannot be followed")
        finally:
            self.translator.finish(name, extended)
            self._changed()

    def _extended(self, call: EngineCall, adapter: str, pieces: Sequence[bytes], streamed: bool, room: int) -> Chain | None:
        text = answer_text(pieces, streamed=streamed)
        if text is None or len(text) < room:
            return None  # a token has a character or more: no further block is full
        following = next_turn(call.path, call.body, text)
        if following is None:
            return None
        try:
            rendering = self._engine.render(call.path, following)
            if rendering is None:
                return None
            return extended_chain(call.path, following, rendering, self._rules, salt=call.salt, adapter=adapter)
        except (BadInput, *_UNREADABLE) as error:  # BadInput: the conversation is longer than the model's context now
            log.debug("an answer cannot be followed: %s", error)
            return None
