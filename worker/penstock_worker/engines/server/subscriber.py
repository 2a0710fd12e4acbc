"""Hears an engine's KV events over ZeroMQ, in order and whole: a gap is asked for again, and what is lost for good clears all.

`engine` runs one in its event loop and hands it a listener. It knows sockets and sequence numbers; what events mean is `events`'.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence

import zmq
import zmq.asyncio

from penstock_worker.engine import AllBlocksCleared, BlockEvent
from penstock_worker.engines.server.events import Unreadable, decode_batch

log = logging.getLogger(__name__)

REPLAY_TIMEOUT_S = 5.0
MOST_MESSAGE_BYTES = 64 << 20
_MOST_WAITING = 100_000
"""Messages that ZeroMQ keeps for us; more are lost, and asked for again."""
_END = -1


class Subscriber:
    """State: the sequence number that comes next. `losses` counts gaps that no replay filled, `unreadable` messages given up."""

    def __init__(self, events: str, replay: str, listener: Callable[[Sequence[BlockEvent]], None]) -> None:
        """`events` and `replay` are ZeroMQ addresses to connect to; an empty `replay`: the engine replays nothing."""
        self.losses = 0
        self.replays = 0
        self.unreadable = 0
        self.passed_over = 0
        self.block_tokens: int | None = None
        self._listener = listener
        self._events = events
        self._replay = replay
        self._next = 0
        self._context = zmq.asyncio.Context()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Connect, ask for everything so far, and listen until `stop`."""
        socket = self._context.socket(zmq.SUB)
        socket.setsockopt(zmq.RCVHWM, _MOST_WAITING)
        socket.setsockopt(zmq.MAXMSGSIZE, MOST_MESSAGE_BYTES)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.SUBSCRIBE, b"")
        socket.connect(self._events)
        self._task = asyncio.get_running_loop().create_task(self._listen(socket), name="kv events")

    async def stop(self) -> None:
        """Safe at any time, also twice."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait((task,))
        self._context.destroy(linger=0)

    async def _listen(self, socket: zmq.asyncio.Socket) -> None:
        try:
            await self._catch_up()
            while True:
                frames = await socket.recv_multipart()
                try:
                    await self._take(frames)
                except Unreadable as error:
                    self.unreadable += 1
                    log.warning("a KV event message is passed over: %s", error)
        except asyncio.CancelledError:
            raise
        except Exception:
            log.exception("KV events are no longer followed")
            self._lose()
        finally:
            socket.close(linger=0)

    async def _take(self, frames: Sequence[bytes]) -> None:
        number, payload = _numbered(frames)
        if number < self._next:
            return  # came with a replay already
        if number > self._next:
            await self._catch_up()
            if number < self._next:
                return
            if number > self._next:
                self._lose()
        self._hand_on(number, payload)

    def _hand_on(self, number: int, payload: bytes) -> None:
        self._next = number + 1
        batch = decode_batch(payload)
        self.passed_over += batch.passed_over
        self.block_tokens = batch.block_tokens or self.block_tokens
        if batch.events:
            self._listener(batch.events)

    def _lose(self) -> None:
        """Messages are gone for good: nothing that was known of this engine can be trusted."""
        self.losses += 1
        self._listener((AllBlocksCleared(),))

    async def _catch_up(self) -> None:
        """Ask for everything from the next number on, and hand it on. Less than that may come."""
        if not self._replay:
            return
        self.replays += 1
        socket = self._context.socket(zmq.DEALER)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.MAXMSGSIZE, MOST_MESSAGE_BYTES)
        socket.connect(self._replay)
        try:
            async with asyncio.timeout(REPLAY_TIMEOUT_S):
                await socket.send_multipart((b"", max(0, self._next).to_bytes(8, "big")))
                while True:
                    frames = await socket.recv_multipart()
                    number, payload = _numbered(frames[1:] if frames and not frames[0] else frames)
                    if number == _END:
                        return
                    if number < self._next:
                        continue
                    if number > self._next:  # the replay buffer does not reach back so far
                        self._lose()
                    self._hand_on(number, payload)
        except (TimeoutError, Unreadable) as error:
            log.warning("a replay of KV events ended early: %s", error or "no answer")
        finally:
            socket.close(linger=0)


def _numbered(frames: Sequence[bytes]) -> tuple[int, bytes]:
    """Sequence number and payload of `[topic, number, payload]` or `[number, payload]`. Raises Unreadable."""
    if len(frames) < 2 or len(frames[-2]) != 8:
        raise Unreadable(f"{len(frames)} frames; allowed: topic, 8 bytes of sequence number, payload")
    return int.from_bytes(frames[-2], "big", signed=True), frames[-1]
