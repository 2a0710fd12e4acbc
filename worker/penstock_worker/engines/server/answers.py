"""One answer of an engine that is a server: its first output looked at, the rest passed through as it comes.

`engine` makes one per call. The head waits for the first event or the whole body, so that an engine's failure is still a status.
It edits nothing: what a client or a router sees is what the engine wrote.
"""

from collections.abc import AsyncIterator, Callable

import msgspec
from penstock_dataplane.client import Response
from penstock_dataplane.errors import UpstreamError
from penstock_dataplane.sse import SseSplitter

from penstock_worker.engine import AnswerCut, AnswerFacts

STREAM_TYPE = b"text/event-stream"
_ERROR_MARKS = (b'data: {"error"', b"event: error")


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    prompt_tokens_details: _Details | None = None


class _Body(msgspec.Struct):
    usage: _Usage | None = None


_decode_body = msgspec.json.Decoder(_Body).decode


class EngineFailed(Exception):
    """The engine's first output is an error of its own; `body` is OpenAI's error object, as far as it came."""

    def __init__(self, body: bytes) -> None:
        super().__init__(body[:500].decode("utf-8", "replace"))


class ServerAnswer:
    """Implements `penstock_worker.engine.EngineAnswer`."""

    def __init__(self, response: Response, on_end: Callable[[], None]) -> None:
        """`on_end` is called once, when the answer is over or given up."""
        self.status = response.status
        self.content_type = response.header(b"content-type") or b"application/json"
        self.facts: AnswerFacts | None = None
        self._response = response
        self._pieces = aiter(response)
        self._splitter = SseSplitter()
        self._ready: list[bytes] = []
        self._on_end: Callable[[], None] | None = on_end

    @property
    def streamed(self) -> bool:
        return self.content_type.startswith(STREAM_TYPE)

    async def first_output(self) -> None:
        """Wait for the first event, or the whole body. Raises EngineFailed or UpstreamError."""
        if not self.streamed:
            body = await self._response.read()
            self._ready = [body]
            self.facts = _facts(body) if self.status == 200 else None
            return
        async for data in self._pieces:
            self._ready = self._splitter.feed(data)
            if self._ready:
                break
        if self._ready and self._ready[0].startswith(_ERROR_MARKS):
            raise EngineFailed(self._ready[0])

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            for event in self._ready:
                yield event
            self._ready = []
            if self.streamed:
                async for data in self._pieces:
                    for event in self._splitter.feed(data):
                        yield event
                if self._splitter.carry:
                    raise AnswerCut("the engine's stream ended inside an event")
        except UpstreamError as error:
            raise AnswerCut(f"the engine's stream was cut: {error.detail}") from None
        finally:
            self._end()

    async def abort(self) -> None:
        """See EngineAnswer.abort: an engine drops a request whose connection is closed."""
        self._response.close()
        self._end()

    def _end(self) -> None:
        on_end, self._on_end = self._on_end, None
        if on_end is not None:
            on_end()


def _facts(body: bytes) -> AnswerFacts | None:
    """What a whole answer's usage says; None where it says nothing of cached tokens."""
    try:
        usage = _decode_body(body).usage
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    if usage is None or usage.prompt_tokens is None or usage.prompt_tokens_details is None:
        return None
    return AnswerFacts(usage.prompt_tokens, usage.prompt_tokens_details.cached_tokens or 0)
