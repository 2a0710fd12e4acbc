"""The contract between a worker's host and the engine it hosts: calls in OpenAI's form, KV events out.

`engines/sim` and `engines/server` (vLLM, SGLang) implement it; `host` is its only user. Bodies travel as the client wrote them, so that an
engine which is an HTTP server itself passes unknown fields through untouched. An engine knows nothing of routers, chunk
keys or Redis.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Protocol

import msgspec
from penstock_core.endpoint import Load
from penstock_core.errors import PenstockError
from penstock_core.profile import EngineProfile


class AnswerCut(PenstockError):
    """An answer that had begun cannot go on (the engine stopped, or somebody aborted it); end the client's stream with an error."""


class EngineInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine says of itself once it is ready."""

    model: str
    profile: EngineProfile
    kv_total_tokens: int
    block_tokens: int
    max_model_tokens: int
    connector: str
    connector_facts: dict[str, str | int] = {}
    """See WorkerRecord.connector_facts."""
    kv_generation: str
    capabilities: tuple[str, ...]
    adapters: tuple[str, ...] = ()
    exact: bool = True
    switches_role: bool = False
    """Whether a worker around it may serve in another role without a new engine."""


class EngineCall(msgspec.Struct, frozen=True, kw_only=True):
    """One request as it reached the worker."""

    request_id: str
    path: str
    """`/v1/chat/completions`, `/v1/completions`, …"""
    body: bytes
    salt: str = ""
    """Cache salt of an isolated tenant; requests of different salts never share KV."""


class Rendering(msgspec.Struct, frozen=True, kw_only=True):
    """A prompt as the engine sees it: its tokens, and where each ends in the rendered text.

    `text` is the rendered prompt; `ends` has one entry a token: characters of `text` covered up to and including it
    (non-decreasing). `ends` is None where the engine gives no offsets.
    """

    text: str
    token_ids: Sequence[int]
    ends: Sequence[int] | None


class AnswerFacts(msgspec.Struct, frozen=True):
    """Known at the first output."""

    prompt_tokens: int
    hit_tokens: int
    """Prompt tokens whose KV was found in the prefix cache (never those pulled from a prefill worker)."""


class EngineAnswer(Protocol):
    """An answer whose first output is there. Iterate once; the pieces are one or more whole SSE events, or the whole JSON body.

    Iterating raises AnswerCut when the answer ends before its time.
    """

    status: int
    content_type: bytes
    facts: AnswerFacts | None

    def __aiter__(self) -> AsyncIterator[bytes]: ...

    async def abort(self) -> None:
        """Stop computing and free what is not claimed; safe at any time, also twice."""


class BlockStored(msgspec.Struct, frozen=True):
    """Full KV blocks became reusable. `hashes[i]`'s parent is `hashes[i-1]`, the first one's is `parent` (None: a prompt's start)."""

    hashes: tuple[int, ...]
    parent: int | None
    token_ids: tuple[int, ...]
    """Tokens of all these blocks, block_tokens each."""
    salt: str = ""
    adapter: str = ""


class BlockRemoved(msgspec.Struct, frozen=True):
    """These blocks were evicted."""

    hashes: tuple[int, ...]


class AllBlocksCleared(msgspec.Struct, frozen=True):
    """The cache is empty."""


BlockEvent = BlockStored | BlockRemoved | AllBlocksCleared


class Handover(msgspec.Struct, frozen=True):
    """KV that goes from prefill to decode workers, since the engine's start and now; all 0 for an engine that hands nothing over."""

    unclaimed_tokens: int = 0
    """Tokens of finished prefills that a decode worker may still fetch, now. A drained worker waits for 0."""
    expired: int = 0
    """Prefills freed because nobody fetched their KV in time."""
    pulled_bytes: int = 0
    served_bytes: int = 0


class Engine(Protocol):
    """One engine replica."""

    async def start(self) -> EngineInfo:
        """Bring the engine up; returns when it can serve."""

    async def answer(self, call: EngineCall) -> EngineAnswer:
        """Run a call until its first output is there. Cancelling the awaiting task aborts the request.

        Raises BadInput (the client's fault, 400), Refused (cannot start now), TransferFailed (KV could not be pulled).
        """

    def render(self, path: str, body: bytes) -> Rendering | None:
        """Tokens and offsets of a request's prompt; None where they cannot be told (images, a template of the client's own).

        Raises BadInput. May take milliseconds: not for the event loop when long.
        """

    def load(self) -> Load:
        """As of now; cheap."""

    def handover(self) -> Handover:
        """KV handed over so far, and what waits to be; cheap."""

    def on_block_events(self, listener: Callable[[Sequence[BlockEvent]], None]) -> None:
        """Call `listener` with every batch of events, in order, from the engine's event loop. One listener."""

    def metrics_text(self) -> str:
        """The engine's own metrics in Prometheus text form, under vLLM's names (protocol.md §3)."""

    async def died(self) -> str:
        """Returns, with the reason, once a started engine can serve no longer though nobody stopped it. Cancel it freely."""

    async def stop(self) -> None:
        """End everything that `start` began; running answers end with AnswerCut."""
