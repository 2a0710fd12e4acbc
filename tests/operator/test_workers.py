"""The loop that empties the queue: keys in time, failures counted, nothing forgotten between two looks at the clock."""

import asyncio
from collections.abc import Callable

from penstock_operator.queue import KeyedQueue
from penstock_operator.workers import Workers


async def until(found: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not found():  # noqa: ASYNC110 -- asked from outside the loop under test
            await asyncio.sleep(0.001)


def test_a_key_that_falls_due_between_two_looks_at_the_clock_is_run() -> None:
    """Not due when taken, due a moment later when the pause is reckoned: it runs, without waiting for the next event."""
    seen: list[str] = []
    looks = iter([0.0, 0.999])  # added at 0, due at 1, looked for just before

    async def reconcile(key: str) -> None:
        seen.append(key)

    async def story() -> None:
        workers: Workers[str] = Workers(KeyedQueue(2), reconcile, on_failure=lambda key, error: None, clock=lambda: next(looks, 1.001))
        workers.add("a", delay_s=1.0)
        serving = asyncio.create_task(workers.serve())
        await until(lambda: seen)
        serving.cancel()
        await asyncio.wait((serving,))

    asyncio.run(story())
    assert seen == ["a"]


def test_no_more_run_than_are_allowed_and_the_end_of_one_starts_the_next() -> None:
    """Five keys, two at a time, all of them run; a failure is told and does not end the loop."""
    running: set[str] = set()
    done: list[str] = []
    failed: list[str] = []
    most = 0

    async def reconcile(key: str) -> None:
        nonlocal most
        running.add(key)
        most = max(most, len(running))
        await asyncio.sleep(0)
        running.discard(key)
        done.append(key)
        if key == "b" and not failed:
            raise ValueError("broken")

    async def story() -> None:
        workers: Workers[str] = Workers(KeyedQueue(2), reconcile, on_failure=lambda key, error: failed.append(key))
        for key in "abcde":
            workers.add(key)
        serving = asyncio.create_task(workers.serve())
        await until(lambda: len(done) >= 6)
        serving.cancel()
        await asyncio.wait((serving,))

    asyncio.run(story())
    assert most == 2 and failed == ["b"] and sorted(done) == ["a", "b", "b", "c", "d", "e"]
