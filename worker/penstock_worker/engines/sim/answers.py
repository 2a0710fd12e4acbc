"""An answer on its way to the client: words in, SSE events or one JSON body out, in OpenAI's form.

The engine feeds a SimAnswer at the end of each pass; the host iterates it. What all chunks of a choice share is rendered
once, so a word costs one concatenation. A host that reads slower than the engine computes leaves events queued here: their
number is bounded by the answer's own max_tokens, and they come out joined.
"""

import asyncio
from collections.abc import AsyncIterator, Callable

import msgspec

from penstock_worker.engine import AnswerFacts
from penstock_worker.engines.sim import payload
from penstock_worker.engines.sim.request import SimRequest
from penstock_worker.engines.sim.stops import StopText

_DONE = b"data: [DONE]\n\n"
_WORDS = tuple(word.encode() for word in payload.WORDS)
_SPACED_WORDS = tuple(word.encode() for word in payload.SPACED_WORDS)


class _Choice:
    """One of the `n` texts of an answer."""

    __slots__ = ("_prefix", "_stop", "_suffix", "ended", "index", "reason", "spaced", "text", "words")

    def __init__(self, index: int, request: SimRequest, prefix: bytes, suffix: bytes) -> None:
        self.index = index
        self._prefix, self._suffix = prefix, suffix
        self.spaced = request.prompt.continues
        self._stop = StopText(request.stop, request.min_tokens) if request.stop else None
        self.words = 0
        self.text: list[bytes] = []  # JSON-escaped; only kept where the answer is one body
        self.reason = ""
        self.ended = False

    def add(self, word: int) -> bytes:
        """Escaped text that the next word lets out."""
        self.words += 1
        spaced, self.spaced = self.spaced, True
        if self._stop is None:
            return _SPACED_WORDS[word] if spaced else _WORDS[word]
        return _escaped(self._stop.add((payload.SPACED_WORDS if spaced else payload.WORDS)[word]))

    def end(self, reason: str) -> bytes:
        """Escaped text that was held back until now."""
        self.ended, self.reason = True, reason
        return _escaped(self._stop.rest()) if self._stop is not None else b""

    @property
    def stopped(self) -> bool:
        return self._stop is not None and self._stop.stopped

    def event(self, text: bytes) -> bytes:
        return self._prefix + text + self._suffix


class SimAnswer:
    """EngineAnswer of the sim engine."""

    status = 200

    def __init__(self, request: SimRequest, request_id: str, model: str, created: int, abort: Callable[["SimAnswer"], None]) -> None:
        chat = request.prompt.chat
        self.content_type = b"text/event-stream; charset=utf-8" if request.stream else b"application/json"
        self.facts: AnswerFacts | None = None
        self.first_output: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when the first word is there, or with the error that came instead."""
        self._request = request
        self._abort = abort
        kind = "chat.completion" if chat else "text_completion"
        if chat and request.stream:
            kind += ".chunk"
        name = ("chatcmpl-" if chat else "cmpl-") + request_id
        head = msgspec.json.encode({"id": name, "object": kind, "created": created, "model": model})[:-1]
        self._head = b"data: " + head if request.stream else head
        self._choices = [_Choice(index, request, *self._around(index)) for index in range(request.n)]
        self._open = request.n
        self._events: list[bytes] = []
        self._closed = False
        self._error: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._started = [False] * request.n

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        while not self._events:
            if self._error is not None:
                raise self._error
            if self._closed:
                raise StopAsyncIteration
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        events, self._events = self._events, []
        return events[0] if len(events) == 1 else b"".join(events)

    async def abort(self) -> None:
        self._abort(self)

    @property
    def closed(self) -> bool:
        return self._closed

    def word(self, index: int, word: int, prompt_tokens: int, hit_tokens: int) -> bool:
        """Take the next word of choice `index`; whether a stop text ended it."""
        choice = self._choices[index]
        text = choice.add(word)
        if not self._started[index]:
            if self.facts is None:
                self.facts = AnswerFacts(prompt_tokens, hit_tokens)
            text = self._start(choice) + text
        if self._request.stream:
            if text:
                self._put(self._with_usage(choice.event(text)))
        elif text:
            choice.text.append(text)
        return choice.stopped

    def end(self, index: int, reason: str, kv_transfer_params: object = None) -> None:
        """Choice `index` has all its words; the last one closes the answer."""
        choice = self._choices[index]
        if choice.ended or self._closed:
            return
        text = choice.end(reason)
        self._open -= 1
        if self._request.stream:
            if text:
                self._put(choice.event(text))
            self._put(self._with_usage(self._last_event(choice)))
            if not self._open:
                self._close(self._usage_event() + _DONE)
        else:
            choice.text.append(text)
            if not self._open:
                self._close(self._body(kv_transfer_params))

    def fail(self, error: Exception) -> None:
        """End at once: the host gets `error` instead of what is missing."""
        if self._closed:
            return
        self._closed, self._error = True, error
        if not self.first_output.done():
            self.first_output.set_exception(error)
            self.first_output.exception()  # nobody may be waiting any more: then there is nobody to tell
        self._wake()

    def _start(self, choice: _Choice) -> bytes:
        """First word of a choice: role event, echoed prompt, and for the first of all the answer itself begins."""
        self._started[choice.index] = True
        if self._request.prompt.chat and self._request.stream:
            form = b',"choices":[{"index":%d,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]}\n\n'
            self._put(self._head + form % choice.index)
        if not self.first_output.done():
            self.first_output.set_result(None)
        segments = self._request.prompt.segments
        return _escaped("".join(segment.text for segment in segments)) if self._request.echo and segments else b""

    def _put(self, event: bytes) -> None:
        self._events.append(event)
        if self._waiter is not None:
            self._wake()

    def _close(self, event: bytes) -> None:
        self._closed = True
        self._events.append(event)
        self._wake()

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _around(self, index: int) -> tuple[bytes, bytes]:
        """What stands before and after the text in an event of choice `index`."""
        before = b'"delta":{"content":"' if self._request.prompt.chat else b'"text":"'
        after = b'"}' if self._request.prompt.chat else b'"'
        return self._head + b',"choices":[{"index":%d,' % index + before, after + b',"logprobs":null,"finish_reason":null}]}\n\n'

    def _last_event(self, choice: _Choice) -> bytes:
        nothing = b'"delta":{}' if self._request.prompt.chat else b'"text":""'
        form = b',"choices":[{"index":%d,%b,"logprobs":null,"finish_reason":"%b"}]}\n\n'
        return self._head + form % (choice.index, nothing, choice.reason.encode())

    def _with_usage(self, event: bytes) -> bytes:
        if not (self._request.include_usage and self._request.continuous_usage):
            return event
        return event[:-3] + b',"usage":' + self._usage() + b"}\n\n"

    def _usage_event(self) -> bytes:
        return self._head + b',"choices":[],"usage":' + self._usage() + b"}\n\n" if self._request.include_usage else b""

    def _usage(self) -> bytes:
        facts = self.facts or AnswerFacts(0, 0)
        words = sum(choice.words for choice in self._choices)
        form = '{"prompt_tokens":%d,"total_tokens":%d,"completion_tokens":%d,"prompt_tokens_details":{"cached_tokens":%d}}'
        return (form % (facts.prompt_tokens, facts.prompt_tokens + words, words, facts.hit_tokens)).encode()

    def _body(self, kv_transfer_params: object) -> bytes:
        form = b'{"index":%d,"message":{"role":"assistant","content":"%b"},"logprobs":null,"finish_reason":"%b"}'
        if not self._request.prompt.chat:
            form = b'{"index":%d,"text":"%b","logprobs":null,"finish_reason":"%b"}'
        choices = b",".join(form % (choice.index, b"".join(choice.text), choice.reason.encode()) for choice in self._choices)
        extra = b"" if kv_transfer_params is None else b',"kv_transfer_params":' + msgspec.json.encode(kv_transfer_params)
        return self._head + b',"choices":[' + choices + b'],"usage":' + self._usage() + extra + b"}"


def _escaped(text: str) -> bytes:
    """`text` as it stands inside a JSON string."""
    return msgspec.json.encode(text)[1:-1]
