"""The wire between block server and puller: strangers, liars and the cut off get nothing, and nobody waits for ever."""

import asyncio
from typing import Any

import msgspec
import pytest
from penstock_core.errors import TransferFailed
from penstock_worker.engines.sim import reference_text


@pytest.mark.parametrize("wrong", [{"fleet_token": "guessed"}, {"kv_generation": "other"}])
def test_strangers_and_other_generations_get_no_blocks(lab: Any, wrong: dict[str, Any]) -> None:
    """Neither side works with a partner that does not hold the token, or whose KV means something else."""

    async def story() -> None:
        async with lab.engine() as prefill, lab.engine(**wrong) as decode:
            body = lab.body(200)
            params = await lab.prefill(prefill, body)
            with pytest.raises(TransferFailed):
                await lab.text(decode, lab.with_fields(body, kv_transfer_params=params))
            assert prefill.store.used > 0
            assert prefill._metrics.served_bytes == 0

    asyncio.run(story())


def test_a_prompt_of_another_length_is_not_given_these_blocks(lab: Any) -> None:
    """The server compares the number of blocks before it sends any."""

    async def story() -> None:
        async with lab.engine() as prefill, lab.engine() as decode:
            params = await lab.prefill(prefill, lab.body(200))
            with pytest.raises(TransferFailed, match="another length"):
                await lab.text(decode, lab.with_fields(lab.body(400), kv_transfer_params=params))

    asyncio.run(story())


async def _speaker(says: bytes) -> tuple[asyncio.Server, int]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(says)
        await writer.drain()
        if says:
            writer.close()
        else:
            await reader.read()  # silent until the other side leaves
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    return server, server.sockets[0].getsockname()[1]


_HELLO = b"PKV1" + bytes(16)


@pytest.mark.parametrize(
    "says",
    [
        pytest.param(b"", id="silence"),
        pytest.param(b"HTTP/1.1 400 Bad Request\r\n\r\n", id="another protocol"),
        pytest.param(b"PKV1", id="cut hello"),
        pytest.param(_HELLO, id="no answer"),
        pytest.param(_HELLO + b"\xff\xff\xff\xff", id="absurd length"),
        pytest.param(_HELLO + b"\x01\0\0\0" + bytes(33), id="no proof"),
    ],
)
def test_a_partner_that_misbehaves_is_a_failed_transfer(lab: Any, says: bytes) -> None:
    """Silent, foreign, cut off or without the token: an error in bounded time, and nothing is kept."""

    async def story() -> None:
        server, port = await _speaker(says)
        async with server, lab.engine(pull_timeout_s=0.2) as decode:
            params = {"do_remote_prefill": True, "remote_host": "127.0.0.1", "remote_port": port}
            params |= {"remote_engine_id": "e", "remote_request_id": "r"}
            async with asyncio.timeout(60):
                with pytest.raises(TransferFailed):
                    await lab.text(decode, lab.body(200, kv_transfer_params=params))
            assert (decode.store.used, len(decode._pulls)) == (0, 0)

    asyncio.run(story())


def test_rows_without_the_fleets_proof_are_not_taken(lab: Any) -> None:
    """A server that answers in form, with rows of the right number, but does not hold the token."""

    async def story() -> None:
        rows = b"\0" + bytes(32 * 2)
        server, port = await _speaker(_HELLO + len(rows).to_bytes(4, "little") + rows + bytes(32))
        async with server, lab.engine() as decode:
            params = {"do_remote_prefill": True, "remote_host": "127.0.0.1", "remote_port": port}
            params |= {"remote_engine_id": "e", "remote_request_id": "r"}
            body = lab.with_fields(b"{}", prompt=list(range(100)), kv_transfer_params=params)
            with pytest.raises(TransferFailed, match="does not prove"):
                await lab.text(decode, body, lab.completions)

    asyncio.run(story())


def test_a_request_without_the_fleets_proof_gets_nothing(lab: Any) -> None:
    """All its fields are right; the connection ends without a byte of an answer, and the claim stays."""

    async def story() -> None:
        async with lab.engine() as prefill:
            params = await lab.prefill(prefill, lab.body(200))
            wanted = {"engine_id": params["remote_engine_id"], "request_id": params["remote_request_id"], "generation": "sim-1"}
            wanted |= {"first": 0, "count": len(params["remote_block_ids"][0]), "nonce": bytes(16)}
            message = msgspec.msgpack.encode(wanted)
            reader, writer = await asyncio.open_connection("127.0.0.1", params["remote_port"])
            writer.write(len(message).to_bytes(4, "little") + message + bytes(32))
            async with asyncio.timeout(60):
                assert len(await reader.readexactly(20)) == 20
                assert await reader.read() == b""
            writer.close()
            assert len(prefill._claims) == 1

    asyncio.run(story())


@pytest.mark.parametrize("says", [b"", b"\xff\xff\xff\xff", b"\x02\0\0\0hi" + bytes(32), b"GET / HTTP/1.1\r\n\r\n" * 5])
def test_a_stranger_at_the_block_server_gets_a_greeting_and_no_more(lab: Any, says: bytes) -> None:
    """Silence, absurd lengths and garbage end the connection and leave the server in order."""

    async def story() -> None:
        async with lab.engine(pull_timeout_s=0.1) as prefill, lab.engine() as decode:
            reader, writer = await asyncio.open_connection("127.0.0.1", prefill._server.port)
            writer.write(says)
            async with asyncio.timeout(60):
                heard = b""
                try:
                    heard = await reader.readexactly(20)
                    heard += await reader.read()
                except ConnectionResetError:
                    pass
            assert len(heard) == 20
            assert heard.startswith(b"PKV1")
            writer.close()
            body = lab.body(100)
            params = await lab.prefill(prefill, body)
            assert await lab.text(decode, lab.with_fields(body, kv_transfer_params=params)) == reference_text(body)
            await lab.until(lambda: not prefill._server._connections, "no connection is left")

    asyncio.run(story())
