"""KV events over real ZeroMQ sockets: in order, gaps filled by replay, what is lost for good clears everything."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import zmq
import zmq.asyncio
from penstock_worker.engine import AllBlocksCleared, BlockEvent, BlockStored
from penstock_worker.engines.server.subscriber import Subscriber

WAIT_S = 30.0


class Publisher:
    """An engine's side: PUB, and ROUTER for replays, as protocol.md §6 describes them."""

    def __init__(self, folder: Path, *, buffer: int = 1000, topic: bool = True) -> None:
        self.events, self.replay = f"ipc://{folder}/e", f"ipc://{folder}/r"
        self._context = zmq.asyncio.Context()
        self._pub, self._router = self._context.socket(zmq.XPUB), self._context.socket(zmq.ROUTER)
        self._pub.bind(self.events)
        self._router.bind(self.replay)
        self._kept: list[tuple[int, bytes]] = []
        self._buffer = buffer
        self._topic = topic
        self._number = 0
        self._serving: asyncio.Task[None] | None = None

    async def subscribed(self) -> None:
        await asyncio.wait_for(self._pub.recv(), WAIT_S)

    async def publish(self, *hashes: int, send: bool = True) -> None:
        event = {"type": "BlockStored", "block_hashes": list(hashes), "parent_block_hash": None, "token_ids": list(hashes), "block_size": 1}
        payload = msgspec.msgpack.encode([0.0, [event], None])
        number, self._number = self._number, self._number + 1
        self._kept = [*self._kept, (number, payload)][-self._buffer :]
        if send:
            await self._pub.send_multipart([b"kv", number.to_bytes(8, "big"), payload])

    async def serve(self) -> None:
        while True:
            who, _, start = await self._router.recv_multipart()
            for number, payload in self._kept:
                if number >= int.from_bytes(start, "big"):
                    topic = [b"kv"] if self._topic else []
                    await self._router.send_multipart([who, b"", *topic, number.to_bytes(8, "big"), payload])
            await self._router.send_multipart([who, b"", (-1).to_bytes(8, "big", signed=True), b""])

    def __enter__(self) -> "Publisher":
        self._serving = asyncio.get_running_loop().create_task(self.serve())
        return self

    def __exit__(self, *_: object) -> None:
        assert self._serving is not None
        self._serving.cancel()
        self._context.destroy(linger=0)


@asynccontextmanager
async def _following(
    publisher: Publisher, replay: str | None = None
) -> AsyncIterator[tuple[Subscriber, list[BlockEvent], Callable[[int], object]]]:
    heard: list[BlockEvent] = []

    def listener(events: Sequence[BlockEvent]) -> None:
        heard.extend(events)

    async def until(count: int) -> None:
        async with asyncio.timeout(WAIT_S):
            while len(heard) < count:  # noqa: ASYNC110 -- events come from a socket, and the listener is a plain call
                await asyncio.sleep(0.005)

    subscriber = Subscriber(publisher.events, publisher.replay if replay is None else replay, listener)
    subscriber.start()
    await publisher.subscribed()
    yield subscriber, heard, until
    await subscriber.stop()


def _hashes(heard: Sequence[BlockEvent]) -> list[int]:
    return [number for event in heard if isinstance(event, BlockStored) for number in event.hashes]


def test_what_came_before_the_subscriber_and_what_got_lost_is_asked_for(tmp_path: Path) -> None:
    """Events sent before it listened, then one that never arrived: all are heard once, in order, nothing is cleared."""

    async def story() -> None:
        for topic in (True, False):
            folder = tmp_path / str(topic)
            folder.mkdir()
            with Publisher(folder, topic=topic) as publisher:
                await publisher.publish(1, send=False)
                async with _following(publisher) as (subscriber, heard, until):
                    await until(1)
                    await publisher.publish(2)
                    await publisher.publish(3, send=False)
                    await publisher.publish(4)
                    await until(4)
                    assert _hashes(heard) == [1, 2, 3, 4]
                    assert len(heard) == 4
                    assert subscriber.losses == 0

    asyncio.run(story())


def test_a_gap_beyond_the_replay_buffer_clears_before_going_on(tmp_path: Path) -> None:
    """The engine kept the last two messages only: what was believed is dropped, then what is known is taken."""

    async def story() -> None:
        with Publisher(tmp_path, buffer=2) as publisher:
            async with _following(publisher) as (subscriber, heard, until):
                await publisher.publish(1)
                await until(1)
                for number in (2, 3, 4):
                    await publisher.publish(number, send=False)
                await publisher.publish(5)
                await until(4)
                assert subscriber.losses == 1
                cleared = heard.index(AllBlocksCleared())
                assert (_hashes(heard[:cleared]), _hashes(heard[cleared:])) == ([1], [4, 5])

    asyncio.run(story())


def test_an_engine_that_replays_nothing_costs_what_was_believed(tmp_path: Path) -> None:
    """Without a replay address a gap clears at once."""

    async def story() -> None:
        with Publisher(tmp_path) as publisher:
            async with _following(publisher, replay="") as (subscriber, heard, until):
                await publisher.publish(1)
                await publisher.publish(2, send=False)
                await publisher.publish(3)
                await until(3)
                assert [type(event) for event in heard] == [BlockStored, AllBlocksCleared, BlockStored]
                assert subscriber.losses == 1

    asyncio.run(story())
