"""Two undivided real engines: what the router foretells of prefix hits is what vLLM counts, whatever happens to caches and events."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from cut_line import CutLine
from penstock_dataplane.loop import run
from raw_engine import BLOCK_TOKENS, BLOCKS, RawEngine
from talk import close_ratio, hit_ratio, traffic

TURNS, WARM_UP = 300, 30
KEPT = {"decisions_kept": 1000}


def test_foretold_hits_are_vllms_own_also_while_blocks_are_evicted(start: Callable[..., Any]) -> None:
    """300 multi-turn requests on small caches: at least 98 % within the grain, mean hit ratio over one half, counts agree."""

    async def story() -> None:
        async with start(adopted=("both", "second"), router=KEPT) as stack:
            decisions = (await traffic(stack, 1, TURNS))[WARM_UP:]
            computed = sum(one["prompt_tokens"] - one["cached_tokens"] for one in decisions)
            assert computed > 2 * BLOCKS * BLOCK_TOKENS, "more than both caches hold: blocks were evicted"
            assert await stack.worker_metric("penstock_worker_prompts_compared_total") >= TURNS // 2
            assert close_ratio(decisions) >= 0.98
            assert hit_ratio(decisions) >= 0.5
            assert await stack.worker_metric("penstock_worker_count_disagreements_total", what="tokens") == 0

    run(story())


@pytest.mark.long
def test_events_lost_on_a_cut_line_are_asked_for_again(start: Callable[..., Any], engines: Sequence[RawEngine]) -> None:
    """Blocks that came while nothing got through are known once the line is whole: a replay, not a fresh start."""

    async def story() -> None:
        async with CutLine(int(engines[0].events.rpartition(":")[2])) as line:
            told = {"both": f"tcp://127.0.0.1:{line.port}"}
            async with start(adopted=("both", "second"), events=told, router=KEPT) as stack:
                await traffic(stack, 3, 40)
                made = line.made
                line.cut()
                await traffic(stack, 4, 40)
                line.mend()
                await stack.until(lambda: line.made > made, "the worker listens again")
                await traffic(stack, 5, 8)
                decisions = await traffic(stack, 4, 80)  # begins as it did while the line was cut
                assert {one["placement"]["decode"] for one in decisions} == {"both-0", "second-0"}
                assert close_ratio(decisions) >= 0.98
                assert hit_ratio(decisions) >= 0.5

    run(story())
