"""Many streams at once through one router: all go on evenly."""

import asyncio
import time

import msgspec
from penstock_dataplane.loop import run
from penstock_worker.engines.sim.reference import reference_text

STREAMS = 256


def test_256_streams_and_none_is_stalled_beyond_its_upstream(start_stack):
    """No client waits for others to end, ten seconds and more: a busy machine alone makes gaps of two."""

    async def story():
        async with start_stack(prefill=1, decode=2, worker={"speed": 0.1}) as stack:
            bodies = [
                msgspec.json.encode(
                    {
                        "model": "m",
                        "stream": True,
                        "max_tokens": 120,
                        "ignore_eos": True,
                        "messages": [{"role": "user", "content": f"{number} " * 60}],
                    }
                )
                for number in range(STREAMS)
            ]
            began = time.monotonic()
            patient = {"x-penstock-slo-ttft-ms": "60000"}  # engines at a tenth of their speed: else some would be turned away
            replies = await asyncio.gather(*(stack.chat(body, **patient) for body in bodies))
            took = time.monotonic() - began
            slow_upstream = await stack.worker_metric("vllm:inter_token_latency_seconds_count") - await stack.worker_metric(
                "vllm:inter_token_latency_seconds_bucket", le="1.0"
            )
            await stack.until_async(stack.idle, "nothing is left")
            return bodies, replies, took, slow_upstream

    bodies, replies, took, slow_upstream = run(story())
    assert [reply.error for reply in replies if reply.error] == []
    assert all(reply.text == reference_text(body) for body, reply in zip(bodies, replies, strict=True))
    at_once = min(reply.arrivals_s[-1] for reply in replies) > max(reply.arrivals_s[0] for reply in replies)
    gaps = [after - before for reply in replies for before, after in zip(reply.arrivals_s, reply.arrivals_s[1:], strict=False)]
    assert at_once, "the streams did not all run at the same time"
    assert max(gaps) <= (2.5 if slow_upstream else 1.0) + 5.0, (max(gaps), took)
