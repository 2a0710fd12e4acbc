"""Streams however the network cuts them: nothing lost, usage edited, memory bounded, keep-alives passed."""

import asyncio
import json

import pytest

from tests.router.conftest import CHAT, STREAM_HEAD, USAGE, delta, event, piece

USAGE_EVENT = event({**delta(""), "choices": [], "usage": USAGE})
WORDS = b"".join(event(delta(word)) for word in ("a", "b", '"usage": {'))
BODY = b": keep-alive\n\n" + WORDS + USAGE_EVENT + b"data: [DONE]\n\n"


def in_pieces(data, size):
    """Sends the stream in pieces of `size` bytes, each in a packet of its own as far as the kernel lets it."""

    async def behave(upstream, seen, writer):
        writer.write(STREAM_HEAD)
        for at in range(0, len(data), size):
            writer.write(piece(data[at : at + size]))
            await writer.drain()
            await asyncio.sleep(0)
        writer.write(b"0\r\n\r\n")

    return behave


@pytest.mark.parametrize("newline", [b"\n", b"\r\n"])
@pytest.mark.parametrize("size", [1, 7, 64, 1000, 10_000])
@pytest.mark.parametrize("wants", [False, True])
def test_the_usage_chunk_is_found_wherever_the_stream_is_cut(play, size, wants, newline):
    """Removed where the client did not ask, passed where it did, and everything else as it came; text is no usage."""

    async def scenario(world):
        one = await world.upstream("a")
        data = BODY.replace(b"\n", newline)
        one.behaviour = in_pieces(data, size)
        await world.start_router(one.url)
        extra = {"stream_options": {"include_usage": True}} if wants else {}
        got = await world.chat(stream=True, **extra)
        usage = USAGE_EVENT.replace(b"\n", newline)
        assert got.body == (data if wants else data.replace(usage, b""))
        assert world.outcomes() == {"ok": 1}

    play(scenario)


def test_tokens_and_gaps_are_counted_from_content_only(play):
    """A keep-alive comment is no token: one first token, and a gap for each chunk after it."""

    async def scenario(world):
        one = await world.upstream("a")
        gate = asyncio.Event()

        async def behave(upstream, seen, writer):
            writer.write(STREAM_HEAD + piece(b": wait\n\n"))
            await gate.wait()
            for word in "abc":
                writer.write(piece(event(delta(word))))
                await writer.drain()
                await asyncio.sleep(0.01)
            writer.write(piece(b"data: [DONE]\n\n") + b"0\r\n\r\n")

        one.behaviour = behave
        router = await world.start_router(one.url)
        asked = asyncio.ensure_future(world.chat(stream=True))
        await world.until(lambda: len(one.seen) == 1, "asked")
        figures = router.figures.model("m")
        assert figures.ttft.count == 0
        gate.set()
        assert (await asked).text == "abc"
        assert figures.ttft.count == 1 and 1 <= figures.itl.count <= 2

    play(scenario)


def test_a_client_that_never_reads_holds_the_upstream_back(play):
    """Megabytes are not buffered: the upstream is stopped, and gone on with when the client reads."""

    async def scenario(world):
        one = await world.upstream("a")
        sent = 0

        async def flood(upstream, seen, writer):
            nonlocal sent
            writer.write(STREAM_HEAD)
            for _ in range(2000):
                writer.write(piece(event(delta("x" * 16_000))))
                await writer.drain()
                sent += 16_000
            writer.write(piece(b"data: [DONE]\n\n") + b"0\r\n\r\n")

        one.behaviour = flood
        await world.start_router(one.url)
        body = json.dumps({"model": "m", "stream": True, "messages": [{"role": "user", "content": "x"}]}).encode()
        reader, writer = await asyncio.open_connection(world.origin.host, world.origin.port, limit=1 << 16)
        writer.write(b"POST %b HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: %d\r\n\r\n%b" % (CHAT.encode(), len(body), body))
        await world.until(lambda: sent > 0, "begun")
        before = -1
        while before != sent:  # until it stands still
            before = sent
            await asyncio.sleep(0.3)
        assert sent < 20_000_000
        total = 0
        while data := await reader.read(1 << 20):
            total += len(data)
        writer.close()
        assert total > 32_000_000
        await world.until(lambda: world.outcomes() == {"ok": 1}, "outcome")

    play(scenario)


def test_many_streams_at_once_all_come_through(play):
    """64 streams over 3 servers."""

    async def scenario(world):
        ones = [await world.upstream(name) for name in "abc"]
        await world.start_router(*(one.url for one in ones), policy="target-misses")
        answers = await asyncio.gather(*(world.chat(f"question {n}", stream=True) for n in range(64)))
        assert all(answer.text.startswith("from ") for answer in answers)
        assert world.outcomes() == {"ok": 64}

    play(scenario)


def test_requests_cancelled_while_they_wait_for_their_place_leave_no_booking(play):
    """Clients that send and leave at once, in bursts: the play's own count of bookings must come out even."""

    async def scenario(world):
        one = await world.upstream("a")
        await world.start_router(one.url)
        body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "x" * 3000}]}).encode()
        head = b"POST %b HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % (CHAT.encode(), len(body))
        for _ in range(5):
            pairs = await asyncio.gather(*(asyncio.open_connection(world.origin.host, world.origin.port) for _ in range(20)))
            for _, writer in pairs:
                writer.write(head + body)
            await asyncio.sleep(0)
            for _, writer in pairs:
                writer.transport.abort()
        assert (await world.chat()).status == 200

    play(scenario)
