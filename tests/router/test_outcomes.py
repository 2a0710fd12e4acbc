"""Every way in which a request can end: status, OpenAI's error body, the metric, once."""

import asyncio

import msgspec
import pytest
from penstock_core.endpoint import Endpoint
from penstock_dataplane.client import Origin
from penstock_router.app import Router
from penstock_router.config import RouterConfig, Secrets, ServedModel
from penstock_router.keys import Tenant
from penstock_router.prefixes import GuessedCache

from tests.router.conftest import CHAT, refuses, waits_for

START = b'{"model": "m", "messages": [{"role": "user", "content": "x"}], '
BAD = [
    ("malformed JSON", b'{"model": "m"', "JSON", None),
    ("not an object", b"[1]", "object", None),
    ("no model", b'{"messages": [{"role": "user", "content": "x"}]}', "model", "model"),
    ("model of a wrong type", b'{"model": 5, "messages": []}', "model", "model"),
    ("no messages", b'{"model": "m"}', "messages", "messages"),
    ("messages of a wrong type", b'{"model": "m", "messages": "hi"}', "messages", "messages"),
    ("content of a wrong type", b'{"model": "m", "messages": [{"role": 5, "content": "x"}]}', "messages", "messages"),
    ("invalid UTF-8", b'{"model": "m", "messages": [{"role": "user", "content": "\xff\xfe"}]}', "", None),
    (
        "absurd max_tokens",
        START + b'"max_tokens": 1e30}',
        "max_tokens",
        "max_tokens",
    ),
    (
        "negative max_tokens",
        START + b'"max_tokens": -1}',
        "max_tokens",
        "max_tokens",
    ),
    (
        "a field of the router's own",
        START + b'"kv_transfer_params": {}}',
        "kv_",
        None,
    ),
    ("deep nesting", b'{"model": "m", "messages": ' + b"[" * 100_000, "", None),
]


@pytest.mark.parametrize(("what", "body", "said", "param"), BAD, ids=[row[0] for row in BAD])
def test_a_bad_body_is_400_and_names_the_field(play, what, body, said, param):
    """Each bad body gets OpenAI's error with the field, and no upstream ever sees it."""

    async def scenario(world):
        one = await world.upstream("a")
        await world.start_router(one.url)
        answer = await world.send(CHAT, body)
        assert (answer.status, answer.error["code"], answer.error["type"]) == (400, "bad_request", "invalid_request_error")
        assert said in answer.error["message"]
        if param is not None:
            assert answer.error["param"] == param
        assert one.seen == [] and world.outcomes("unknown") == {"bad_request": 1}

    play(scenario)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("x-penstock-priority", "urgent"),
        ("x-penstock-priority", "101"),
        ("x-penstock-slo-ttft-ms", "0"),
        ("x-penstock-slo-itl-ms", "nan"),
    ],
)
def test_a_bad_header_is_400_and_names_it(play, name, value):
    """Headers of Penstock's own are checked like fields."""

    async def scenario(world):
        one = await world.upstream("a")
        await world.start_router(one.url)
        answer = await world.chat(headers={name: value})
        assert answer.status == 400 and answer.error["param"] == name and value in answer.error["message"]

    play(scenario)


def test_an_unknown_model_is_404_and_lists_those_that_are_served(play):
    """The message says what is allowed; the client's word does not become a metric label."""

    async def scenario(world):
        one = await world.upstream("a")
        router = await world.start_router(one.url)
        answer = await world.chat(model="nope")
        assert (answer.status, answer.error["code"], answer.error["param"]) == (404, "model_not_found", "model")
        assert "'nope'" in answer.error["message"] and "m" in answer.error["message"]
        assert set(router.figures.models) == {"unknown"}

    play(scenario)


def test_wrong_paths_and_methods_say_what_is_allowed(play):
    """404 for a path that is not there, 405 for a method."""

    async def scenario(world):
        one = await world.upstream("a")
        await world.start_router(one.url)
        assert (await world.send("/v1/nothing", b"{}")).status == 404
        wrong = await world.send(CHAT, method="GET")
        assert wrong.status == 405 and "POST" in wrong.error["message"]
        wrong = await world.send("/v1/models", method="DELETE")
        assert wrong.status == 405 and "GET" in wrong.error["message"]
        assert (await world.send("/v1/modelsaurus", method="GET")).status == 404

    play(scenario)


def test_a_path_that_no_endpoint_of_the_model_serves_is_400_and_lists_those_that_do(play):
    """No use trying again: it is no 503, and no `Retry-After`."""

    async def scenario(world):
        one = await world.upstream("a")
        await world.start_router(one.url)
        answer = await world.send("/v1/embeddings", b'{"model": "m", "input": "x"}')
        assert (answer.status, answer.error["code"], answer.error["param"]) == (400, "bad_request", None)
        assert "/v1/embeddings" in answer.error["message"] and CHAT in answer.error["message"]
        assert "retry-after" not in answer.headers and one.seen == []

    play(scenario)


def test_an_oversize_body_is_413_and_an_oversize_head_431(play):
    """Refused by the server before there is a request, in OpenAI's form, and counted."""

    async def scenario(world):
        one = await world.upstream("a")
        await world.start_router(one.url, body_bytes=2048, header_bytes=16384)
        large = await world.chat("x" * 4000)
        assert (large.status, large.error["code"]) == (413, "body_too_large")
        heads = await world.chat(headers={"x-long": "y" * 40_000})
        assert (heads.status, heads.error["code"]) == (431, "bad_request")
        assert world.outcomes("unknown") == {"body_too_large": 1, "bad_request": 1}

    play(scenario)


def test_keys_are_asked_for_when_there_is_a_file(play, tmp_path):
    """No key and a wrong key are 401; the right one passes and is not sent on."""
    keys = tmp_path / "keys.yaml"
    keys.write_text("sk-1: {tenant: red}\n")

    async def scenario(world):
        one = await world.upstream("a")
        await world.start_router(one.url, api_keys=str(keys))
        for headers in ({}, {"authorization": "Bearer sk-2"}):
            answer = await world.chat(headers=headers)
            assert (answer.status, answer.error["code"], answer.headers["www-authenticate"]) == (401, "unauthorized", "Bearer")
        assert (await world.chat(headers={"authorization": "Bearer sk-1"})).status == 200
        assert "authorization" not in one.seen[0].headers
        assert world.outcomes("unknown") == {"unauthorized": 2}

    play(scenario)


def test_changed_keys_take_effect_without_a_restart(play, tmp_path):
    """The poll finds the new file."""
    keys = tmp_path / "keys.yaml"
    keys.write_text("sk-1: {tenant: red}\n")

    async def scenario(world):
        one = await world.upstream("a")
        router = await world.start_router(one.url, api_keys=str(keys))
        keys.write_text("sk-2222: {tenant: red}\n")
        await world.until(lambda: router.keys.tenant_of(b"Bearer sk-2222") == Tenant("red"), "new key")
        assert (await world.chat(headers={"authorization": "Bearer sk-1"})).status == 401

    play(scenario)


def test_too_many_at_once_is_429_with_a_retry_after(play):
    """The bound holds while one is being served and is free again after."""

    async def scenario(world):
        one = await world.upstream("a")
        gate = asyncio.Event()
        one.behaviour = waits_for(gate)
        await world.start_router(one.url, active_requests_per_model=1, queued_requests_per_model=0)
        first = asyncio.ensure_future(world.chat())
        await world.until(lambda: len(one.seen) == 1, "first request")
        answer = await world.chat()
        assert (answer.status, answer.error["code"], answer.error["type"]) == (429, "queue_full", "rate_limit_error")
        assert 1 <= int(answer.headers["retry-after"]) <= 60
        gate.set()
        assert (await first).status == 200
        assert (await world.chat()).status == 200
        assert world.outcomes() == {"ok": 2, "queue_full": 1}

    play(scenario)


def test_no_live_endpoint_is_503(play):
    """A model whose only server is down is known, and cannot be served."""

    async def scenario(world):
        one = await world.upstream("a")
        await one.stop()
        router = await world.start_router(f"{one.url},model=m")
        answer = await world.chat()
        assert (answer.status, answer.error["code"]) == (503, "no_endpoint")
        assert "0 placements tried" in answer.error["message"]
        assert not router.directory.ready and (await world.send("/readyz", method="GET")).status == 503

    play(scenario)


def test_refusals_by_all_are_503_and_say_how_many(play):
    """Workers that are full are no failures: come back soon."""

    async def scenario(world):
        ones = [await world.upstream("a"), await world.upstream("b")]
        for one in ones:
            one.behaviour = refuses("full")
        await world.start_router(*(one.url for one in ones))
        answer = await world.chat()
        assert (answer.status, answer.error["code"]) == (503, "no_endpoint")
        assert "2 placements tried" in answer.error["message"] and answer.headers["retry-after"] == "1"

    play(scenario)


def test_isolated_tenants_get_a_cache_salt_and_the_fleet_token_stays_home(play, tmp_path):
    """A server given by hand isolates by `cache_salt`; it never gets the fleet's token or salt header."""
    keys = tmp_path / "keys.yaml"
    keys.write_text("k1: {tenant: red, isolation: true}\nk2: {tenant: blue, isolation: true}\nk3: {tenant: open}\n")

    async def scenario(world):
        one = await world.upstream("a")
        await world.start_router(one.url, api_keys=str(keys), secrets=Secrets(chunk_secret=7, fleet_token="fleet"))
        for key in ("k1", "k2", "k3"):
            assert (await world.chat(headers={"authorization": f"Bearer {key}", "x-penstock-salt": "mine"})).status == 200
        salts = [seen.body.get("cache_salt") for seen in one.seen]
        assert salts[2] is None and len({*salts[:2]}) == 2 and all(salts[:2])
        assert not any(name.startswith("x-penstock-") for seen in one.seen for name in seen.headers)

    play(scenario)


def test_a_clients_own_cache_salt_keeps_prompts_apart(play):
    """Two who salt alike share a prefix, two who do not never do; an isolated tenant's salt stands before the client's own."""

    async def scenario(world):
        one = await world.upstream("a")
        await world.start_router(one.url, policy="target-misses", explain_every=1)
        text, hits = "word " * 400, []
        for salt in ("red", "red", "blue", None):
            fields = {"cache_salt": salt} if salt else {}
            answer = await world.chat(text, headers={"x-penstock-explain": "1"}, **fields)
            shown = dict(part.split("=", 1) for part in answer.headers["x-penstock-placement"].split(";"))
            hits.append(int(shown["hit_tokens"]) > 0)
        assert hits == [False, True, False, False]
        assert [seen.body.get("cache_salt") for seen in one.seen] == ["red", "red", "blue", None]

    play(scenario)


def test_candidates_are_kept_the_more_seldom_the_more_endpoints_there_are(play):
    """Where every decision among a few keeps them, of those among 48 endpoints every third one does."""

    async def scenario(world):
        one = await world.upstream("a")
        router = await world.start_router(one.url, explain_every=1)
        (known,) = router.directory.models["m"].live
        many = router.directory.add("many", GuessedCache(1, 1.0), chunk_bytes=256)
        many.set_endpoints([Endpoint(msgspec.structs.replace(known.record, id=f"e{number}", model="many")) for number in range(48)], 0.0)
        director = router.director
        assert all(director._keeps_candidates(router.directory.models["m"]) for _ in range(3))
        assert [director._keeps_candidates(many) for _ in range(6)] == [False, False, True] * 2

    play(scenario)


def test_isolation_without_the_fleets_token_is_refused(play, tmp_path, redis_url, unused_model):
    """Salts need the token: rather no answer than a shared cache."""
    keys = tmp_path / "keys.yaml"
    keys.write_text("k: {tenant: red, isolation: true}\n")

    async def scenario(world):
        models = (ServedModel(name=unused_model),)
        world.router = Router(RouterConfig(port=0, redis_url=redis_url, models=models, api_keys=str(keys)), Secrets(chunk_secret=1))
        world.origin = Origin("http", *await world.router.start())
        answer = await world.chat("x" * 1000, model=unused_model, headers={"authorization": "Bearer k"})
        assert (answer.status, answer.error["code"], answer.error["type"]) == (403, "forbidden", "permission_error")

    play(scenario)
