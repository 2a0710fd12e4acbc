"""Every policy by its name in a real router: sockets on both sides, undivided and P/D, a failed leg, everything given back."""

import asyncio

import pytest
from penstock_router.policy_names import POLICY_NAMES

from tests.router.conftest import refuses

every_policy = pytest.mark.parametrize("policy", [*POLICY_NAMES, "block-cost:32"])
PREFILL = "role=prefill,model=m,connector=nixl,remote_engine_id=e"


@every_policy
def test_a_router_serves_with_the_policy(play, policy):
    """Twelve requests at once on three servers, one of which refuses its first: all are answered, and the answers say why."""

    async def scenario(world):
        servers = [await world.upstream(name) for name in "abc"]
        servers[0].plan = [refuses("full")]
        await world.start_router(*(f"{one.url},model=m,id={one.name}" for one in servers), policy=policy)
        asked = [world.chat(f"hello {number}", headers={"x-penstock-explain": "1"}) for number in range(12)]
        answers = await asyncio.gather(*asked)
        assert [one.status for one in answers] == [200] * 12
        assert world.outcomes() == {"ok": 12}
        word = "least-cost" if policy == "target-misses" else policy.partition(":")[0]
        assert all(one.headers["x-penstock-placement"].endswith(f"reason={word}") for one in answers)

    play(scenario)


@every_policy
def test_a_router_divides_with_the_policy(play, policy):
    """Two prefill and two decode servers: each request has both legs."""

    async def scenario(world):
        prefills, decodes = [await world.upstream(f"p{n}") for n in range(2)], [await world.upstream(f"d{n}") for n in range(2)]
        written = [f"{one.url},id={one.name},{PREFILL}" for one in prefills]
        written += [f"{one.url},id={one.name},role=decode,model=m,connector=nixl" for one in decodes]
        await world.start_router(*written, policy=policy)
        answers = await asyncio.gather(*(world.chat(f"hello {number}") for number in range(8)))
        assert [one.status for one in answers] == [200] * 8
        assert sum(len(one.seen) for one in prefills) == sum(len(one.seen) for one in decodes) == 8

    play(scenario)
