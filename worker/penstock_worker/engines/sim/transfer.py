"""KV rows from a prefill engine to a decode engine over TCP: the block server and its client, and their wire form.

    server → client   "PKV1", nonce (16 bytes)
    client → server   length (uint32), request (msgpack), proof (32 bytes)
    server → client   length (uint32), status (1 byte) and rows (32 bytes a block), proof (32 bytes)
    client → server   01 when the rows are in its store: only then are the blocks unpinned

Numbers are little-endian. A proof is HMAC-SHA256 with the fleet's token over a label, the other side's nonce and the
message: the token never travels, not even to a host that a forged request names, and nobody else can supply rows.
"""

import asyncio
import hashlib
import hmac
import logging
import secrets
import struct
import time
from collections.abc import Callable

import msgspec
from penstock_core.errors import TransferFailed

from penstock_worker.engines.sim.blocks import BlockStore
from penstock_worker.engines.sim.claims import Claim, Claims
from penstock_worker.engines.sim.config import SimConfig
from penstock_worker.engines.sim.payload import ROW_BYTES
from penstock_worker.engines.sim.request import RemoteKv

_log = logging.getLogger(__name__)
_MAGIC = b"PKV1"
_NONCE_BYTES = 16
_PROOF_BYTES = 32
_MOST_REQUEST_BYTES = 4_096
_MOST_CONNECTIONS = 512
_DONE = b"\x01"
_OK, _UNKNOWN, _OTHER_GENERATION, _OTHER_LENGTH = range(4)
_REFUSALS = {
    _UNKNOWN: "its blocks are unknown, expired or taken",
    _OTHER_GENERATION: "its KV is of another engine or generation",
    _OTHER_LENGTH: "it is of another length",
}


class _Wanted(msgspec.Struct, frozen=True):
    engine_id: str
    request_id: str
    generation: str
    first: int
    """Leading blocks that the client has already."""
    count: int
    nonce: bytes


def _proof(token: str, label: bytes, nonce: bytes, message: bytes) -> bytes:
    return hmac.digest(token.encode(), label + nonce + message, hashlib.sha256)


class BlockServer:
    """Hands out the blocks of claims. One pull a connection; at most 512 connections, one more is closed at once."""

    def __init__(
        self, config: SimConfig, engine_id: str, store: BlockStore, claims: Claims, ended: Callable[[Claim, int | None], None]
    ) -> None:
        """`ended(claim, first)` is called after each pull: the claim's blocks from `first` on were taken, or none (None)."""
        self._config = config
        self._engine_id = engine_id
        self._store = store
        self._claims = claims
        self._ended = ended
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self.port = 0

    async def start(self) -> None:
        """Listen. Raises OSError where the port is taken."""
        host = self._config.transfer_bind_host or self._config.transfer_host
        self._server = await asyncio.start_server(self._accept, host, self._config.transfer_port, limit=_MOST_REQUEST_BYTES)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Stop listening and cut the pulls under way."""
        if self._server is not None:
            self._server.close()
        for connection in self._connections:
            connection.cancel()
        if self._connections:
            await asyncio.wait(self._connections)
        if self._server is not None:
            await self._server.wait_closed()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is None:
            raise AssertionError("a connection's handler runs in a task")
        if len(self._connections) >= _MOST_CONNECTIONS:
            writer.close()
            return
        self._connections.add(task)
        try:
            await self._serve(reader, writer)
        except (OSError, EOFError, TimeoutError, msgspec.MsgspecError) as gone:
            _log.info("a pull ended early: %s", gone or type(gone).__name__)
        except asyncio.CancelledError:
            pass  # only `stop` cancels; asyncio.streams would log the cancellation of a handler as an error
        finally:
            self._connections.discard(task)
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonce = secrets.token_bytes(_NONCE_BYTES)
        writer.write(_MAGIC + nonce)
        async with asyncio.timeout(self._config.pull_timeout_s):
            length = int.from_bytes(await reader.readexactly(4), "little")
            if length > _MOST_REQUEST_BYTES:
                return
            message = await reader.readexactly(length)
            proof = await reader.readexactly(_PROOF_BYTES)
        if not hmac.compare_digest(proof, _proof(self._config.fleet_token, b"pull", nonce, message)):
            _log.warning("a pull without the fleet's token was turned away")
            return
        wanted = msgspec.msgpack.decode(message, type=_Wanted)
        status, claim = self._begin(wanted)
        if claim is None:
            self._send(writer, wanted, bytes((status,)))
            await writer.drain()
            return
        taken = False
        try:
            rows = b"".join(map(self._store.row, claim.blocks[wanted.first :]))
            self._send(writer, wanted, bytes((_OK,)) + rows)
            async with asyncio.timeout(self._config.claim_seconds):
                await writer.drain()
                taken = await reader.readexactly(1) == _DONE
        finally:
            if taken:
                self._claims.finish(wanted.request_id)
            else:
                self._claims.give_up(wanted.request_id)
            self._ended(claim, wanted.first if taken else None)

    def _begin(self, wanted: _Wanted) -> tuple[int, Claim | None]:
        if wanted.engine_id != self._engine_id or wanted.generation != self._config.kv_generation:
            return _OTHER_GENERATION, None
        claim = self._claims.begin(wanted.request_id, time.monotonic())
        if claim is None:
            return _UNKNOWN, None
        if wanted.first < 0 or wanted.count < 0 or wanted.first + wanted.count != len(claim.blocks):
            self._claims.give_up(wanted.request_id)
            return _OTHER_LENGTH, None
        return _OK, claim

    def _send(self, writer: asyncio.StreamWriter, wanted: _Wanted, answer: bytes) -> None:
        proof = _proof(self._config.fleet_token, b"rows", wanted.nonce, answer)
        writer.write(struct.pack("<I", len(answer)) + answer + proof)


class Pulled:
    """Rows that have come, and the connection on which the server waits to hear that they were taken."""

    def __init__(self, rows: bytes, writer: asyncio.StreamWriter) -> None:
        self.rows = rows
        self._writer = writer

    def taken(self) -> None:
        """Let the server unpin its blocks."""
        self._writer.write(_DONE)
        self._writer.close()

    def drop(self) -> None:
        """Give up; the server keeps the blocks for another try until their deadline."""
        self._writer.transport.abort()


async def fetch(config: SimConfig, remote: RemoteKv, first: int, count: int) -> Pulled:
    """Rows of `count` blocks after the `first` of a claim. Raises TransferFailed saying why; takes at most pull_timeout_s."""
    where = f"KV of {remote.request_id} at {remote.host}:{remote.port}"
    writer: asyncio.StreamWriter | None = None
    try:
        async with asyncio.timeout(config.pull_timeout_s):
            reader, writer = await asyncio.open_connection(remote.host, remote.port)
            rows = await _exchange(config, reader, writer, remote, first, count)
        pulled = Pulled(rows, writer)
        writer = None
    except TimeoutError:
        raise TransferFailed(f"{where}: no answer within {config.pull_timeout_s} s") from None
    except (OSError, EOFError, ValueError) as failed:
        raise TransferFailed(f"{where}: {failed or type(failed).__name__}") from None
    finally:
        if writer is not None:
            writer.transport.abort()
    return pulled


async def _exchange(
    config: SimConfig, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, remote: RemoteKv, first: int, count: int
) -> bytes:
    hello = await reader.readexactly(len(_MAGIC) + _NONCE_BYTES)
    if not hello.startswith(_MAGIC):
        raise ValueError("it speaks another protocol; allowed: PKV1")
    nonce = secrets.token_bytes(_NONCE_BYTES)
    wanted = _Wanted(remote.engine_id, remote.request_id, config.kv_generation, first, count, nonce)
    message = msgspec.msgpack.encode(wanted)
    if len(message) > _MOST_REQUEST_BYTES:
        raise ValueError(f"remote_engine_id and remote_request_id make {len(message)} bytes; allowed: {_MOST_REQUEST_BYTES}")
    writer.write(struct.pack("<I", len(message)) + message + _proof(config.fleet_token, b"pull", hello[len(_MAGIC) :], message))
    length = int.from_bytes(await reader.readexactly(4), "little")
    if not 1 <= length <= 1 + count * ROW_BYTES:
        raise ValueError(f"its answer is {length} bytes long; allowed: 1 to {1 + count * ROW_BYTES}")
    answer = await reader.readexactly(length)
    proof = await reader.readexactly(_PROOF_BYTES)
    if not hmac.compare_digest(proof, _proof(config.fleet_token, b"rows", nonce, answer)):
        raise ValueError("its answer does not prove the fleet's token")
    if answer[0] != _OK:
        raise ValueError(_REFUSALS.get(answer[0], f"refused with status {answer[0]}"))
    if length != 1 + count * ROW_BYTES:
        raise ValueError(f"its answer is {length} bytes long; allowed: {1 + count * ROW_BYTES}")
    return answer[1:]
