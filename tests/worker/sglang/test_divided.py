"""Two workers around SGLang's wire formats behind a real router: both legs are sent at once and meet in a room."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
from penstock_core.endpoint import Role
from penstock_dataplane.loop import run

from tests.e2e.stack import Stack
from tests.worker.sglang.sglang_double import Rooms, SgLangDouble

BODY = {"model": "m", "messages": [{"role": "user", "content": "How does water turn a turbine?"}], "max_tokens": 4}


@asynccontextmanager
async def _divided(folder: Path) -> AsyncIterator[tuple[Stack, list[SgLangDouble], SgLangDouble]]:
    """Two prefill engines and one decode engine, each behind a worker."""
    rooms = Rooms()
    prefills, decode = [SgLangDouble("prefill", rooms), SgLangDouble("prefill", rooms)], SgLangDouble("decode", rooms)
    doubles = {"prefill": prefills[0], "more": prefills[1], "decode": decode}
    for double in doubles.values():
        await double.start()
    each = {
        pool: {"engine_url": double.url, "engine_kv_events": double.events, "role": Role.DECODE if double is decode else Role.PREFILL}
        for pool, double in doubles.items()
    }
    try:
        async with Stack(folder, dict.fromkeys(each, 1), {}, {"engine": "sglang"}, pool_settings=each) as stack:
            yield stack, prefills, decode
    finally:
        for double in doubles.values():
            await double.stop()


def test_both_legs_meet_in_one_room_and_usage_is_whole(tmp_path: Path) -> None:
    """Streamed and not: the answer is the decode engine's, cached tokens are the prefill engine's, rooms differ."""

    async def story() -> None:
        async with _divided(tmp_path) as (stack, prefills, decode):
            for one in prefills:
                one.cached_tokens = 16
            reply = await stack.chat(msgspec.json.encode({**BODY, "stream": True, "stream_options": {"include_usage": True}}))
            whole = await stack.client.post(f"{stack.url}/v1/chat/completions", json=BODY)
            asked = [*prefills[0].bodies, *prefills[1].bodies]
            rooms = [body["bootstrap_room"] for body in decode.bodies]
            assert len(rooms) == 2
            assert {body["bootstrap_room"] for body in asked} == set(rooms)
            assert all(body["bootstrap_host"] == "127.0.0.1" and body["bootstrap_port"] == 8998 for body in (*asked, *decode.bodies))
            assert all(body["stream"] is False and body["max_tokens"] == 1 for body in asked)
            assert reply.text == f"room {rooms[0]}"
            assert whole.json()["choices"][0]["message"]["content"] == f"room {rooms[1]}"
            assert whole.json()["usage"]["prompt_tokens_details"]["cached_tokens"] == 16

    run(story())


def test_a_broken_transfer_is_tried_again_with_another_prefill_before_the_client_hears_of_it(tmp_path: Path) -> None:
    """The decode engine's 500 becomes a new pair of legs in another room."""

    async def story() -> None:
        async with _divided(tmp_path) as (stack, prefills, decode):
            decode.fails = 1
            async with asyncio.timeout(60):
                answer = await stack.client.post(f"{stack.url}/v1/chat/completions", json=BODY)
            assert answer.status_code == 200, answer.text
            first, second = (body["bootstrap_room"] for body in decode.bodies)
            assert first != second
            assert [body["bootstrap_room"] for one in prefills for body in one.bodies].count(second) == 1

    run(story())
