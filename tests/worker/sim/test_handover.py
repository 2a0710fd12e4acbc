"""Prefill here, decode there, over a real socket: the text is the predicted one, or the request fails loudly."""

import asyncio
import json
import random
from typing import Any

import pytest
from penstock_core.errors import BadInput, TransferFailed
from penstock_worker.engine import AnswerCut, Handover
from penstock_worker.engines.sim import reference_text


def _usage(answer: dict[str, Any]) -> tuple[int, int]:
    return answer["usage"]["prompt_tokens"], answer["usage"]["prompt_tokens_details"]["cached_tokens"]


@pytest.mark.parametrize("words", [1, 20, 61, 64, 300, 2_000])
def test_a_handed_over_answer_is_the_predicted_one(lab: Any, words: int) -> None:
    """Prompts of less than a block, around a block's border, and of many blocks; both sides count the bytes."""

    async def story() -> None:
        async with lab.engine() as prefill, lab.engine() as decode:
            body = lab.body(words)
            params = await lab.prefill(prefill, body)
            assert (params["do_remote_prefill"], params["do_remote_decode"], params["tp_size"]) == (True, False, 1)
            assert prefill.store.used == len(params["remote_block_ids"][0]) > 0
            assert prefill.handover().unclaimed_tokens == params["remote_num_tokens"]
            answer = await lab.json(decode, lab.with_fields(body, kv_transfer_params=params))
            assert answer["choices"][0]["message"]["content"] == reference_text(body)
            prompt_tokens, cached = _usage(answer)
            assert (prompt_tokens, cached) == (params["remote_num_tokens"], 0)
            await lab.until(lambda: prefill.store.used == 0, "the prefill's blocks are unpinned")
            moved = prompt_tokens * decode.config.profile.kv_bytes_per_token
            assert f'vllm:nixl_bytes_transferred_sum{{model_name="sim"}} {moved}' in decode.metrics_text()
            assert f'sim:kv_bytes_served_total{{model_name="sim"}} {moved}' in prefill.metrics_text()
            assert decode.handover() == Handover(pulled_bytes=moved)
            assert prefill.handover() == Handover(served_bytes=moved)
            assert decode.store.used == 0

    asyncio.run(story())


def test_thirty_two_at_once_share_the_batch_and_the_link(lab: Any) -> None:
    """With little KV on both sides, so that pins, pulls, evictions and preemptions meet."""

    async def story() -> None:
        tight = {"kv_tokens": 64 * 80, "claim_seconds": 60.0}
        async with lab.engine(**tight) as prefill, lab.engine(**tight) as decode:

            async def one(seed: int) -> bool:
                body = lab.body(100 + 37 * seed % 900, seed=seed % 5)
                params = await lab.prefill(prefill, body)
                text = await lab.text(decode, lab.with_fields(body, kv_transfer_params=params))
                return bool(text == reference_text(body, max_model_tokens=decode.config.context_tokens))

            assert all(await asyncio.gather(*map(one, range(32))))
            await lab.until(lambda: prefill.store.used == 0, "nothing stays pinned")
            assert (decode.store.used, len(decode._pulls), decode._metrics.pulls) == (0, 0, 32)

    asyncio.run(story())


@pytest.mark.parametrize("seed", range(3))
def test_clients_that_leave_at_any_moment_leave_nothing_behind(lab: Any, seed: int) -> None:
    """Two thirds of 60 requests are cancelled after a random number of turns of the loop; the others' texts are right."""

    async def story() -> None:
        rnd = random.Random(seed)
        tight = {"kv_tokens": 64 * 60, "claim_seconds": 0.2, "speed": 500.0}
        async with lab.engine(**tight) as prefill, lab.engine(**tight) as decode:

            async def one(number: int) -> bool:
                body = lab.body(50 + 31 * number % 900, seed=number % 4, max_tokens=30)
                for _ in range(20):  # a claim may expire while its decode leg waits for blocks: prefill again, as a router does
                    params = await lab.prefill(prefill, body)
                    try:
                        text = await lab.text(decode, lab.with_fields(body, kv_transfer_params=params))
                    except TransferFailed:
                        continue
                    return bool(text == reference_text(body))
                return bool(await lab.text(decode, body) == reference_text(body))

            tasks = [asyncio.create_task(one(number)) for number in range(60)]
            leaving = rnd.sample(tasks, 40)
            for task in leaving:
                for _ in range(rnd.randint(0, 40)):
                    await asyncio.sleep(0)
                task.cancel()
            async with asyncio.timeout(60):
                results = await asyncio.gather(*tasks, return_exceptions=True)
            stayed = [result for task, result in zip(tasks, results, strict=True) if task not in leaving]
            assert stayed == [True] * 20
            await lab.until(lambda: prefill.store.used == 0, "unclaimed prefills expire")
            await lab.until(lambda: not prefill._server._connections, "no connection is left")
            for engine in (prefill, decode):
                load = engine.load()
                assert (load.running, load.waiting, load.prefill_tokens, load.kv_used_tokens) == (0, 0, 0, 0)
                assert (len(engine._pulls), len(engine._pulls._link._ends), len(engine._claims), len(engine._answers)) == (0, 0, 0, 0)

    asyncio.run(story())


def test_one_byte_flipped_in_a_transferred_block_changes_the_text(lab: Any) -> None:
    """In a full block as in the partly filled last one."""

    async def story() -> None:
        for which in (0, -1):
            async with lab.engine() as prefill, lab.engine() as decode:
                body = lab.body(200, max_tokens=12)
                params = await lab.prefill(prefill, body)
                prefill.store.rows[params["remote_block_ids"][0][which], 5] ^= 1
                assert await lab.text(decode, lab.with_fields(body, kv_transfer_params=params)) != reference_text(body)

    asyncio.run(story())


def test_the_kv_of_another_prompt_changes_the_text(lab: Any) -> None:
    """A foreign hand-over of the same length is found out by the text."""

    async def story() -> None:
        async with lab.engine() as prefill, lab.engine() as decode:
            mine = lab.with_fields(b"{}", prompt=list(range(100)), max_tokens=12)
            other = lab.with_fields(b"{}", prompt=list(range(1, 101)), max_tokens=1, kv_transfer_params=lab.prefill_params)
            params = (await lab.json(prefill, other, lab.completions))["kv_transfer_params"]
            text = await lab.text(decode, lab.with_fields(mine, kv_transfer_params=params), lab.completions)
            assert text != reference_text(mine, lab.completions)

    asyncio.run(story())


def test_only_missing_blocks_are_pulled_and_pulled_ones_are_cached(lab: Any) -> None:
    """The second turn pulls what is new; the decode side's events name the pulled blocks."""

    async def story() -> None:
        async with lab.engine() as prefill, lab.engine() as decode:
            events = lab.collect_events(decode)
            content = lab.prompt(300)
            body = json.dumps({"messages": [{"role": "user", "content": content}], "max_tokens": 1}).encode()
            await lab.text(decode, lab.with_fields(body, kv_transfer_params=await lab.prefill(prefill, body)))
            stored = sum(len(event.hashes) for event in events)
            first_bytes = decode._metrics.pulled_bytes
            tokens = first_bytes // decode.config.profile.kv_bytes_per_token
            assert stored == tokens // 64

            longer = json.dumps(
                {"messages": [{"role": "user", "content": content}, {"role": "user", "content": "more"}], "max_tokens": 20}
            ).encode()
            params = await lab.prefill(prefill, longer)
            answer = await lab.json(decode, lab.with_fields(longer, kv_transfer_params=params))
            assert answer["choices"][0]["message"]["content"] == reference_text(longer)
            prompt_tokens, cached = _usage(answer)
            assert cached == tokens // 64 * 64
            pulled = decode._metrics.pulled_bytes - first_bytes
            assert pulled == (prompt_tokens - cached) * decode.config.profile.kv_bytes_per_token

    asyncio.run(story())


def test_a_claim_nobody_makes_is_freed_and_a_late_pull_fails(lab: Any) -> None:
    """After claim_seconds the blocks are free but cached; the decode worker is told so."""

    async def story() -> None:
        async with lab.engine(claim_seconds=0.05) as prefill, lab.engine() as decode:
            body = lab.body(200)
            params = await lab.prefill(prefill, body)
            assert prefill.store.used > 0
            await lab.until(lambda: prefill.store.used == 0, "the claim expires although the engine is idle")
            assert 'vllm:nixl_num_kv_expired_reqs_total{model_name="sim"} 1' in prefill.metrics_text()
            assert prefill.store.cached > 0
            with pytest.raises(TransferFailed, match="unknown, expired or taken"):
                await lab.text(decode, lab.with_fields(body, kv_transfer_params=params))
            assert decode.store.used == 0
            assert decode.load().prefill_tokens == 0

    asyncio.run(story())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"remote_request_id": "nobody-1"}, "unknown, expired or taken"),
        ({"remote_engine_id": "sim-0000000000000000"}, "another engine or generation"),
        ({"remote_port": 1}, "refused|Connect"),
        ({"remote_host": "host.invalid"}, "host.invalid"),
        ({"remote_request_id": "x" * 5_000}, "5\\d\\d\\d bytes; allowed"),
    ],
)
def test_a_pull_that_cannot_be_is_an_error_never_a_text(lab: Any, wrong: dict[str, Any], message: str) -> None:
    """And leaves the prefill's blocks to their real puller."""

    async def story() -> None:
        async with lab.engine() as prefill, lab.engine() as decode:
            body = lab.body(200)
            params = await lab.prefill(prefill, body)
            with pytest.raises(TransferFailed, match=message):
                await lab.text(decode, lab.with_fields(body, kv_transfer_params={**params, **wrong}))
            assert (decode.store.used, len(decode._pulls), decode.load().waiting) == (0, 0, 0)
            assert decode._metrics.pulls_failed == 1
            assert await lab.text(decode, lab.with_fields(body, kv_transfer_params=params)) == reference_text(body)

    asyncio.run(story())


def test_a_pull_given_up_before_its_first_step_leaves_the_link(lab: Any) -> None:
    """Else it would share the link for ever."""

    async def story() -> None:
        async with lab.engine() as prefill, lab.engine() as decode:
            params = await lab.prefill(prefill, lab.body(200))
            task = asyncio.create_task(lab.text(decode, lab.body(200, kv_transfer_params=params)))
            await asyncio.sleep(0)  # the call runs up to its wait; the pull's task has not run yet
            assert len(decode._pulls) == 1
            await next(iter(decode._answers)).abort()
            with pytest.raises(AnswerCut):
                await task
            assert (len(decode._pulls), len(decode._pulls._link._ends)) == (0, 0)

    asyncio.run(story())


def test_a_decode_leg_given_up_mid_pull_frees_its_blocks_and_another_may_pull(lab: Any) -> None:
    """The pull takes long on a slow link; its abort leaves the prefill's blocks to the next decode worker."""

    async def story() -> None:
        async with lab.engine() as prefill, lab.engine(speed=0.01) as slow, lab.engine() as decode:
            body = lab.body(3_000)
            params = await lab.prefill(prefill, body)
            leg = lab.with_fields(body, kv_transfer_params=params)
            task = asyncio.create_task(lab.text(slow, leg))
            await lab.until(lambda: any(claim.begun for claim in prefill._claims._claims.values()), "the pull is under way")
            assert slow.store.used > 0
            with pytest.raises(TransferFailed, match="taken"):
                await lab.text(decode, leg)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert (slow.store.used, len(slow._pulls), slow.load().prefill_tokens) == (0, 0, 0)
            await lab.until(lambda: not any(claim.begun for claim in prefill._claims._claims.values()), "the claim is free again")
            assert await lab.text(decode, leg) == reference_text(body)

    asyncio.run(story())


def test_a_claim_whose_puller_vanished_expires_in_an_idle_engine(lab: Any) -> None:
    """Its time was over while it was being pulled; nothing else wakes the engine."""

    async def story() -> None:
        async with lab.engine(claim_seconds=0.3) as prefill, lab.engine(speed=0.01) as slow:
            body = lab.body(3_000)
            params = await lab.prefill(prefill, body)
            task = asyncio.create_task(lab.text(slow, lab.with_fields(body, kv_transfer_params=params)))
            await lab.until(lambda: len(slow._pulls) == 1, "the pull is under way")
            await lab.until(lambda: prefill.store.used == 0, "the server waits no longer for a slow puller, and the claim expires")
            assert prefill._claims.expired_total == 1
            task.cancel()
            await asyncio.wait((task,))

    asyncio.run(story())


def test_stopping_the_prefill_side_fails_the_pull(lab: Any) -> None:
    """Its pins are gone with it."""

    async def story() -> None:
        async with lab.engine() as decode:
            async with lab.engine() as prefill:
                body = lab.body(200)
                params = await lab.prefill(prefill, body)
            assert prefill.store.used == 0
            with pytest.raises(TransferFailed):
                await lab.text(decode, lab.with_fields(body, kv_transfer_params=params))

    asyncio.run(story())


def test_stopping_the_decode_side_mid_pull_cuts_the_answer(lab: Any) -> None:
    """The waiting call ends with an error, and no task is left."""

    async def story() -> None:
        async with lab.engine() as prefill:
            async with lab.engine(speed=0.01) as decode:
                body = lab.body(3_000)
                params = await lab.prefill(prefill, body)
                task = asyncio.create_task(lab.text(decode, lab.with_fields(body, kv_transfer_params=params)))
                await lab.until(lambda: len(decode._pulls) == 1, "the pull is under way")
            with pytest.raises(AnswerCut):
                await task
            await lab.until(lambda: not prefill._server._connections, "the connection is gone")

    asyncio.run(story())


def test_several_choices_are_not_handed_over(lab: Any) -> None:
    """The router places n > 1 decode-only; the engine says so by name."""

    async def story() -> None:
        async with lab.engine() as engine:
            params = {"do_remote_prefill": True, "remote_host": "h", "remote_port": 1, "remote_engine_id": "e", "remote_request_id": "r"}
            with pytest.raises(BadInput) as caught:
                await lab.text(engine, lab.body(20, n=2, kv_transfer_params=params))
            assert caught.value.param == "n"

    asyncio.run(story())
