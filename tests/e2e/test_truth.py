"""Every answer is the one that the reference function foretells, also while a prefill worker dies and comes back."""

import asyncio
import os
import random
import signal
import time

import msgspec
from penstock_dataplane.loop import run
from penstock_worker.engines.sim.reference import reference_text

PROMPTS, CONCURRENCY = 500, 32
ASKED = {"model": "m", "stream": True, "stream_options": {"include_usage": True}}
WORDS = [word.strip(".,") for word in (__doc__ or "").split()] + ["gate", "river", "wheel", "water", "pressure", "pipe", "turbine", "head"]


def made_body(rng: random.Random) -> bytes:
    """A prompt of about 200 to 8,000 tokens (the tokenizer takes about 1.2 tokens a word)."""
    text = " ".join(rng.choices(WORDS, k=rng.randint(170, 6_600)))
    return msgspec.json.encode({**ASKED, "max_tokens": rng.randint(4, 24), "messages": [{"role": "user", "content": text}]})


def test_500_prompts_get_the_foretold_text_while_a_prefill_worker_is_killed(start_stack):
    """No client error, every text exact, at least 95 % of the answers outside the kill window divided, with their bytes moved."""

    async def story():
        async with start_stack(prefill=1, decode=2, worker={"speed": 10.0}, router={"decisions_kept": 2 * PROMPTS}) as stack:
            rng = random.Random(3)
            bodies = [made_body(rng) for _ in range(PROMPTS)]
            replies, turn, window = {}, iter(range(PROMPTS)), []

            async def client():
                for number in turn:
                    replies[number] = await stack.chat(bodies[number])

            async def killer():
                await stack.until(lambda: len(replies) >= PROMPTS // 3, "a third of the answers")
                victim = next(worker for worker in stack.fleet.status() if worker.pool == "prefill")
                window.append(time.monotonic())
                os.kill(victim.pid, signal.SIGKILL)
                await stack.until(lambda: not stack.fleet.settled, "the fleet notices")
                await stack.fleet.wait_settled(60)
                await stack.until_async(lambda: stack.sees(3), "the router sees the new prefill worker")
                window.append(time.monotonic())

            await asyncio.gather(killer(), *(client() for _ in range(CONCURRENCY)))
            fallbacks = await stack.router_metric("penstock_router_prefill_fallback_total")
            pulled = await stack.worker_metric("penstock_worker_kv_transferred_bytes_total", direction="pulled")
            await stack.until_async(stack.idle, "nothing runs, waits or is kept for a decode worker")
            return bodies, replies, window, fallbacks, pulled

    bodies, replies, (killed, back), fallbacks, pulled = run(story())
    assert [reply.error for reply in replies.values() if reply.error] == []
    wrong = [number for number, reply in replies.items() if reply.text != reference_text(bodies[number])]
    assert wrong == []
    outside = [reply for reply in replies.values() if reply.arrivals_s[-1] < killed or reply.began_s > back]
    inside = len(replies) - len(outside)
    divided = [reply for reply in outside if reply.placement["prefill"].startswith("prefill-")]
    assert len(replies) == PROMPTS
    assert inside > 0, "nothing was under way when the worker was killed"
    assert len(divided) >= 0.95 * len(outside)
    full_blocks = sum(reply.usage["prompt_tokens"] // 64 for reply in divided)
    assert pulled >= 32 * 0.95 * full_blocks, (pulled, full_blocks, fallbacks)
