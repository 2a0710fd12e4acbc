"""Two legs: what each of them gets, how usage is put together, and where a request goes when a leg fails."""

import asyncio

import pytest

from tests.router.conftest import PARAMS, USAGE, answer, refuses, says, waits_for, whole

PREFILL = "role=prefill,model=m,connector={connector},bootstrap_host=p,remote_bootstrap_addr=http://p:1,remote_engine_id=e1"


async def fleet(world, prefills=1, decodes=1, connector="nixl", **settings):
    """A fleet of prefill and decode servers given by hand, and the router in front."""
    ps = [await world.upstream(f"p{number}") for number in range(prefills)]
    ds = [await world.upstream(f"d{number}") for number in range(decodes)]
    written = [f"{one.url},id={one.name},{PREFILL.format(connector=connector)}" for one in ps]
    written += [f"{one.url},id={one.name},role=decode,model=m,connector={connector}" for one in ds]
    await world.start_router(*written, **settings)
    return ps, ds


def test_nixl_prefills_then_decodes(play):
    """The prefill leg makes one token and no stream; the decode leg is the client's body with the answered parameters."""

    async def scenario(world):
        (p,), (d,) = await fleet(world)
        got = await world.chat(
            stream=True, max_tokens=9, min_tokens=3, stream_options={"include_usage": True}, n=1, headers={"x-request-id": "r"}
        )
        assert got.status == 200 and got.text == "from d0"
        sent = p.seen[0].body
        assert (sent["stream"], sent["max_tokens"], sent["max_completion_tokens"], sent["n"]) == (False, 1, 1, 1)
        assert "min_tokens" not in sent and "stream_options" not in sent
        assert sent["kv_transfer_params"]["do_remote_decode"] is True
        body = d.seen[0].body
        assert body["kv_transfer_params"] == {**PARAMS, "remote_request_id": "p0"}
        assert (body["stream"], body["max_tokens"], body["min_tokens"]) == (True, 9, 3)
        assert p.seen[0].headers["x-request-id"] == d.seen[0].headers["x-request-id"] == "r"

    play(scenario)


@pytest.mark.parametrize("stream", [False, True])
def test_usage_counts_the_prompt_where_it_was_prefilled(play, stream):
    """Prompt and cached tokens from the prefill leg, completion tokens from the decode leg, and no transfer parameters."""

    async def scenario(world):
        (p,), _ = await fleet(world)
        usage = b'{"prompt_tokens": 100, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 64}}'
        p.behaviour = says(whole(200, b'{"usage": ' + usage + b', "kv_transfer_params": {"a": 1}}'))
        got = await world.chat(stream=stream, **({"stream_options": {"include_usage": True}} if stream else {}))
        said = got.chunks[-1]["usage"] if stream else got.json["usage"]
        assert (said["prompt_tokens"], said["completion_tokens"], said["total_tokens"]) == (100, USAGE["completion_tokens"], 103)
        assert said["prompt_tokens_details"]["cached_tokens"] == 64
        assert b"kv_transfer_params" not in got.body

    play(scenario)


def test_requests_that_cannot_be_divided_go_to_one_endpoint(play):
    """n > 1 is not divided."""

    async def scenario(world):
        (p,), (d,) = await fleet(world)
        assert (await world.chat(n=2)).text == "from d0"
        assert p.seen == [] and "kv_transfer_params" not in d.seen[0].body

    play(scenario)


@pytest.mark.parametrize("connector", ["sglang", "mooncake"])
def test_concurrent_connectors_send_both_legs_at_once(play, connector):
    """The decode leg is there while the prefill leg still runs, and both speak of the same transfer."""

    async def scenario(world):
        (p,), (d,) = await fleet(world, connector=connector)
        gate = asyncio.Event()
        p.behaviour = d.behaviour = waits_for(gate)
        asked = asyncio.ensure_future(world.chat(stream=True, stream_options={"include_usage": True}))
        await world.until(lambda: len(p.seen) == len(d.seen) == 1, "both legs")
        gate.set()
        got = await asked
        assert got.text == "from d0"
        first, second = p.seen[0].body, d.seen[0].body
        if connector == "sglang":
            assert first["bootstrap_room"] == second["bootstrap_room"] and second["bootstrap_host"] == "p"
        else:
            assert first["kv_transfer_params"]["transfer_id"] == second["kv_transfer_params"]["transfer_id"]
            assert second["kv_transfer_params"]["remote_engine_id"] == "e1"

    play(scenario)


@pytest.mark.parametrize(("connector", "status"), [("sglang", 502), ("mooncake", 200)])
def test_a_failing_prefill_leg_cancels_the_decode_leg(play, connector, status):
    """The decode leg waits for KV that never comes: it is left, and the decode endpoint prefills itself, where its kind can."""

    async def scenario(world):
        (p,), (d,) = await fleet(world, connector=connector)
        gate = asyncio.Event()
        p.behaviour = waits_for(gate, says(whole(500, b"x")))
        d.plan = [waits_for(asyncio.Event())]
        asked = asyncio.ensure_future(world.chat())
        await world.until(lambda: len(p.seen) == len(d.seen) == 1, "both legs")
        gate.set()
        got = await asked
        assert got.status == status
        await world.until(lambda: d.left == 1, "the decode leg is left")
        assert world.router.figures.prefill_fallbacks == ({"server_error": 1} if status == 200 else {})
        assert len(d.seen) == (2 if status == 200 else 1)

    play(scenario)


def test_sglang_asks_a_second_prefill_endpoint_when_the_first_fails(play):
    """Both legs are sent anew, in another room."""

    async def scenario(world):
        ps, (d,) = await fleet(world, prefills=2, connector="sglang")
        gate = asyncio.Event()
        for p in ps:
            p.plan = [waits_for(gate, says(whole(500, b"x")))]
        d.plan = [waits_for(asyncio.Event())]
        asked = asyncio.ensure_future(world.chat())
        await world.until(lambda: sum(len(p.seen) for p in ps) == len(d.seen) == 1, "both legs")
        for p in ps:
            p.plan = []
        gate.set()
        assert (await asked).text == "from d0"
        rooms = [request.body["bootstrap_room"] for request in d.seen]
        assert len(rooms) == 2 and rooms[0] != rooms[1]
        assert sum(len(p.seen) for p in ps) == 2

    play(scenario)


def test_an_sglang_decode_endpoint_gets_nothing_without_a_prefill(play):
    """What cannot be divided has no place in a divided SGLang: that is said, and nothing is sent that would wait for ever."""

    async def scenario(world):
        (p,), (d,) = await fleet(world, connector="sglang")
        assert (await world.chat(n=2)).status == 503
        assert p.seen == [] and d.seen == []

    play(scenario)


@pytest.mark.parametrize("connector", ["sglang", "mooncake"])
def test_a_failing_decode_leg_cancels_the_prefill_leg(play, connector):
    """The prefill leg has nobody to hand to: it is left, and the request goes elsewhere."""

    async def scenario(world):
        (p,), ds = await fleet(world, decodes=2, connector=connector)
        gate = asyncio.Event()
        p.plan = [waits_for(asyncio.Event())]
        for d in ds:
            d.plan = [waits_for(gate, says(whole(500, b"x")))]
        asked = asyncio.ensure_future(world.chat())
        await world.until(lambda: len(p.seen) == 1 and len(ds[0].seen) + len(ds[1].seen) == 1, "both legs")
        for d in ds:
            d.plan = []
        gate.set()
        assert (await asked).status == 200
        await world.until(lambda: p.left == 1, "the prefill leg is left")
        assert world.router.figures.retries == {"server_error": 1}

    play(scenario)


FAILED = {
    "server_error": says(whole(500, b"<html>")),
    "refused_full": refuses("full"),
    "refused_draining": refuses("draining"),
    "connection_lost": says(b"HTTP/1.1 2", close=True),
    "garbage": says(b"SSH-2.0\r\n\r\n", close=True),
}


@pytest.mark.parametrize("reason", FAILED)
def test_a_failed_prefill_goes_to_another_prefill_endpoint(play, reason):
    """The first prefill endpoint fails; the second one does it, and nothing falls back."""

    async def scenario(world):
        ps, (d,) = await fleet(world, prefills=2)
        for p in ps:
            p.plan = []
        ps[0].behaviour = FAILED[reason]
        for _ in range(2):
            assert (await world.chat()).text == "from d0"
        assert all(seen.body["kv_transfer_params"]["remote_request_id"] == "p1" for seen in d.seen)
        figures = world.router.figures
        assert figures.prefill_fallbacks == {} and figures.retries == {reason: len(ps[0].seen)}

    play(scenario)


@pytest.mark.parametrize("reason", FAILED)
@pytest.mark.parametrize("prefills", [1, 2])
def test_without_a_working_prefill_endpoint_the_decode_endpoint_prefills(play, reason, prefills):
    """One other prefill endpoint is tried, then the decode endpoint does its own prefill, counted with the reason."""

    async def scenario(world):
        ps, (d,) = await fleet(world, prefills=prefills)
        for p in ps:
            p.behaviour = FAILED[reason]
        got = await world.chat()
        assert got.text == "from d0" and "kv_transfer_params" not in d.seen[0].body
        assert sum(len(p.seen) for p in ps) == prefills
        figures = world.router.figures
        assert figures.prefill_fallbacks == {reason: 1}
        assert figures.retries == ({reason: 1} if prefills == 2 else {})
        assert world.outcomes() == {"ok": 1}

    play(scenario)


def test_a_prefill_server_that_is_gone_falls_back(play):
    """Nobody listens there: the decode endpoint prefills, and the dead one is left alone from then on."""

    async def scenario(world):
        (p,), _ = await fleet(world, probe_s=60.0)
        await p.stop()
        assert [(await world.chat()).text for _ in range(3)] == ["from d0"] * 3
        assert world.router.figures.prefill_fallbacks == {"connect": 1}

    play(scenario)


def test_a_prefill_without_transfer_parameters_falls_back(play):
    """An engine that kept nothing answers null."""

    async def scenario(world):
        (p,), _ = await fleet(world)
        p.behaviour = says(whole(200, b'{"kv_transfer_params": null, "usage": {"prompt_tokens": 1}}'))
        assert (await world.chat()).json["usage"]["prompt_tokens"] == USAGE["prompt_tokens"]
        assert world.router.figures.prefill_fallbacks == {"no_transfer": 1}

    play(scenario)


@pytest.mark.parametrize("reason", ["refused_full", "refused_draining"])
def test_a_decode_endpoint_that_never_began_leaves_the_prefill_valid(play, reason):
    """Another decode endpoint takes the same KV: no second prefill."""

    async def scenario(world):
        (p,), ds = await fleet(world, decodes=2)
        ds[0].behaviour = FAILED[reason]
        for _ in range(2):
            assert (await world.chat()).text == "from d1"
        assert len(p.seen) == 2
        assert world.router.figures.retries == {reason: len(ds[0].seen)}

    play(scenario)


def test_a_decode_endpoint_that_failed_under_way_means_a_new_prefill(play):
    """The KV may be gone with it: prefill again, decode elsewhere."""

    async def scenario(world):
        (p,), ds = await fleet(world, decodes=2)
        ds[0].behaviour = FAILED["server_error"]
        for _ in range(2):
            assert (await world.chat()).text == "from d1"
        assert len(p.seen) == 2 + len(ds[0].seen)

    play(scenario)


def test_lost_kv_means_a_new_prefill_elsewhere(play):
    """`x-penstock-refuse: kv`: the decode endpoint could not pull. It is used again, the prefill endpoint is not."""

    async def scenario(world):
        ps, (d,) = await fleet(world, prefills=2)
        d.plan = [refuses("kv")]
        got = await world.chat()
        assert got.text == "from d0"
        assert [len(p.seen) for p in ps] == [1, 1] and len(d.seen) == 2
        assert world.router.figures.retries == {"kv_lost": 1}

    play(scenario)


def test_lost_kv_with_one_prefill_endpoint_falls_back(play):
    """Nobody else can prefill: the decode endpoint does it."""

    async def scenario(world):
        _, (d,) = await fleet(world)
        d.plan = [refuses("kv")]
        assert (await world.chat()).text == "from d0"
        assert "kv_transfer_params" not in d.seen[-1].body
        assert world.router.figures.prefill_fallbacks == {"kv_lost": 1}

    play(scenario)


@pytest.mark.parametrize("leg", ["prefill", "decode"])
def test_a_client_that_leaves_cancels_the_leg_that_runs(play, leg):
    """Whichever leg is under way sees its connection close."""

    async def scenario(world):
        (p,), (d,) = await fleet(world)
        hanging = p if leg == "prefill" else d
        hanging.behaviour = waits_for(asyncio.Event())
        asked = asyncio.ensure_future(world.chat())
        await world.until(lambda: len(hanging.seen) == 1, "the leg")
        asked.cancel()
        await world.until(lambda: hanging.left == 1, "left")
        await world.until(lambda: world.outcomes() == {"client_gone": 1}, "outcome")

    play(scenario)


def test_both_legs_share_one_deadline(play):
    """The prefill leg uses most of it up; the decode leg gets the rest, not a new one."""

    async def scenario(world):
        (p,), (d,) = await fleet(world, deadline_s=0.5)

        async def slow(upstream, seen, writer):
            await asyncio.sleep(0.3)
            await answer(upstream, seen, writer)

        p.behaviour = slow
        d.behaviour = waits_for(asyncio.Event())
        loop = asyncio.get_running_loop()
        started_s = loop.time()
        got = await world.chat()
        assert got.status == 504 and loop.time() - started_s < 0.3 + 0.5

    play(scenario)
