"""Mock workers for the router benchmarks: asyncio protocols with precomputed answers, several workers in one process.

Run as `python -m benchmarks.mock_worker --workers 4`; prints the ports as JSON, then serves until its stdin closes. An
answer carries `x-penstock-facts` as a real worker's does. Streams send a chunk every `--interval-ms`, each with the time
it was written (monotonic nanoseconds), so that a client on the same machine can tell the added delay.
"""

import argparse
import asyncio
import json
import sys
import time

from penstock_core.facts import Facts, encode_facts
from penstock_dataplane.loop import run as run_loop

from benchmarks.bodies import MODEL
from benchmarks.mock_registration import register

_FACTS = b"x-penstock-facts: " + encode_facts(Facts(0, 0, 1000, 16, 0, 0, 32_000, 307_328, MODEL)) + b"\r\n"
_ANSWER = json.dumps(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": MODEL,
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "open the gate " * 16}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 1000, "completion_tokens": 64, "total_tokens": 1064, "prompt_tokens_details": {"cached_tokens": 0}},
    },
    separators=(",", ":"),
).encode()
UNARY = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n" + _FACTS + b"content-length: %d\r\n\r\n" % len(_ANSWER) + _ANSWER
STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n" + _FACTS + b"transfer-encoding: chunked\r\n\r\n"
STAMP_DIGITS = 19


def framed(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def _event(delta: str, finish: str) -> bytes:
    head = f'data: {{"id":"chatcmpl-1","object":"chat.completion.chunk","created":1700000000,"model":"{MODEL}",'
    return f'{head}"choices":[{{"index":0,"delta":{delta},"finish_reason":{finish}}}]}}\n\n'.encode()


_BEFORE, _AFTER = framed(_event('{"content":"' + "0" * STAMP_DIGITS + '"}', "null")).split(b"0" * STAMP_DIGITS)
_USAGE = f'data: {{"id":"chatcmpl-1","object":"chat.completion.chunk","created":1700000000,"model":"{MODEL}","choices":[],'
STREAM_END = (
    framed(_event("{}", '"stop"'))
    + framed(_USAGE.encode() + b'"usage":{"prompt_tokens":1000,"completion_tokens":64,"total_tokens":1064}}\n\n')
    + framed(b"data: [DONE]\n\n")
    + b"0\r\n\r\n"
)


def json_answer(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body) + body


MODELS = json_answer(b'{"object":"list","data":[{"id":"%s","object":"model","owned_by":"bench"}]}' % MODEL.encode())
HEALTH = json_answer(b"{}")


class Pace:
    """When streams write. It holds the streams in step; spread ones hold their own timer."""

    def __init__(self, interval_s: float, *, in_step: bool) -> None:
        self.interval_s = interval_s
        self.in_step = in_step
        self.together: set[MockWorker] = set()
        self.started = 0

    def tick(self, at: float) -> None:
        """All streams in step write now, as a batching engine does at the end of a pass."""
        for stream in list(self.together):
            stream.write_chunk()
        asyncio.get_running_loop().call_at(at + self.interval_s, self.tick, at + self.interval_s)


class MockWorker(asyncio.Protocol):
    """One connection; requests one after another. `user: hold` in a body asks for a stream that hardly ever writes."""

    def __init__(self, pace: Pace) -> None:
        self.pace = pace
        self.buffer = b""
        self.left = 0
        self.timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()

    def data_received(self, data: bytes) -> None:
        self.buffer = self.buffer + data if self.buffer else data
        while self.buffer:
            head_end = self.buffer.find(b"\r\n\r\n")
            if head_end < 0:
                return
            head = self.buffer[:head_end].lower()
            at = head.find(b"content-length:")
            length = int(head[at + 15 : head.find(b"\r\n", at) if head.find(b"\r\n", at) > 0 else None]) if at >= 0 else 0
            end = head_end + 4 + length
            if len(self.buffer) < end:
                return
            body, self.buffer = self.buffer[head_end + 4 : end], self.buffer[end:]
            self._answer(head, body)

    def _answer(self, head: bytes, body: bytes) -> None:
        if head.startswith(b"get"):
            self.transport.write(MODELS if b"/v1/models" in head[:40] else HEALTH)
        elif b'"stream":true' not in body:
            self.transport.write(UNARY)
        else:
            self._start_stream(body)

    def _start_stream(self, body: bytes) -> None:
        pace, loop = self.pace, asyncio.get_running_loop()
        self.transport.write(STREAM_HEAD)
        at = body.find(b'"max_tokens":') + 13
        self.left = int(body[at : at + 12].split(b",")[0].split(b"}")[0])
        self.interval_s = 30.0 if b'"user":"hold"' in body else pace.interval_s
        self.write_chunk()
        if self.interval_s == pace.interval_s and pace.in_step:
            pace.together.add(self)
        else:
            pace.started += 1  # the golden ratio spreads any number of phases evenly
            first_at = loop.time() + self.interval_s * (1 + pace.started * 0.618_033_988_7 % 1)
            self.timer = loop.call_at(first_at, self._on_timer, first_at)

    def _on_timer(self, at: float) -> None:
        self.write_chunk()
        if self.left > 0:
            self.timer = asyncio.get_running_loop().call_at(at + self.interval_s, self._on_timer, at + self.interval_s)

    def write_chunk(self) -> None:
        if self.left > 0:
            self.left -= 1
            self.transport.write(_BEFORE + b"%019d" % time.monotonic_ns() + _AFTER)
        if self.left <= 0:
            self._stop()
            self.transport.write(STREAM_END)

    def _stop(self) -> None:
        self.pace.together.discard(self)
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


async def serve(workers: int, interval_s: float, redis_url: str, *, in_step: bool) -> None:
    """Listen, register if there is a registry, say so, and serve until stdin closes."""
    loop = asyncio.get_running_loop()
    pace = Pace(interval_s, in_step=in_step)
    servers = [await loop.create_server(lambda: MockWorker(pace), "127.0.0.1", 0, backlog=1024) for _ in range(workers)]
    if in_step:
        pace.tick(loop.time())
    ports = [server.sockets[0].getsockname()[1] for server in servers]
    renewing = await register(redis_url, ports) if redis_url else None
    print(json.dumps(ports), flush=True)
    await loop.run_in_executor(None, sys.stdin.read)
    if renewing is not None:
        renewing.cancel()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--interval-ms", type=float, default=10.0)
    parser.add_argument("--redis", default="")
    parser.add_argument("--in-step", action="store_true")
    given = parser.parse_args()
    run_loop(serve(given.workers, given.interval_ms / 1e3, given.redis, in_step=given.in_step))


if __name__ == "__main__":
    main()
