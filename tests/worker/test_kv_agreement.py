"""Whether counts agree, and what becomes of a worker whose hits are promised and not found."""

import httpx
import msgspec
from penstock_core.kv_events import decode_state
from penstock_dataplane.loop import run
from penstock_worker.assembly import build_host
from penstock_worker.config import WorkerConfig, WorkerSecrets
from penstock_worker.kv_agreement import LEAST, WINDOW, Agreement, Told
from penstock_worker.kv_chain import CHAT_PATH

TOLD = Told(prompt_tokens=1_000, held_tokens=640, slack_tokens=80)


def _compare(agreement: Agreement, times: int, cached_tokens: int) -> None:
    for _ in range(times):
        agreement.compare(TOLD, 1_000, cached_tokens)


def test_more_found_than_promised_agrees_and_less_than_the_grain_does_too() -> None:
    """A sibling's blocks came in between, or a chunk's end was not a block's."""
    agreement = Agreement()
    assert agreement.compare(TOLD, 1_000, 900)
    assert agreement.compare(TOLD, 1_000, 640 - 80)
    assert not agreement.compare(TOLD, 1_000, 640 - 81)
    assert not agreement.compare(TOLD, 999, 640), "a prompt counted otherwise was rendered otherwise"
    assert (agreement.token_disagreements, agreement.hit_disagreements) == (1, 1)


def test_trust_is_lost_by_broken_promises_only_and_comes_back_slowly() -> None:
    """A quarter of the last ones broken loses it; less than a tenth restores it; what promised nothing says nothing."""
    agreement = Agreement()
    _compare(agreement, LEAST - 1, 0)
    assert agreement.trusted, "too few to say"
    _compare(agreement, 1, 0)
    assert not agreement.trusted and not agreement.exact
    for _ in range(WINDOW):
        agreement.compare(Told(1_000, 0, 80), 1_000, 0)
    assert not agreement.trusted, "nothing was promised"
    _compare(agreement, WINDOW - LEAST - 1, 640)
    assert not agreement.trusted, "a tenth is not enough"
    _compare(agreement, 2 * LEAST, 640)
    assert agreement.trusted


def test_a_worker_that_is_not_trusted_promises_nothing_until_it_is_again() -> None:
    """Its chunks leave the index at the next change, and what it holds then comes back as a whole."""

    async def story() -> None:
        host = build_host(WorkerConfig(model="m", speed=200.0), WorkerSecrets(chunk_secret=5))
        await host.start()
        agreement = host._follower.agreement
        async with httpx.AsyncClient(base_url=host.url, timeout=60) as client:

            async def held_after(question: str) -> int:
                body = msgspec.json.encode({"model": "m", "messages": [{"role": "user", "content": question * 300}], "max_tokens": 2})
                assert (await client.post(CHAT_PATH, content=body)).status_code == 200
                return len(decode_state((await client.get("/penstock/kv")).content).keys)

            first = await held_after("water turns ")
            assert first > 0
            _compare(agreement, LEAST, 0)
            assert await held_after("the turbine ") == 0
            _compare(agreement, WINDOW, 640)
            assert await held_after("a third one ") > 2 * first
        await host.stop()

    run(story())
