"""What a following Pod does, from the leader's news alone; and what its page says to whom."""

import httpx
import pytest
from penstock_dataplane.loop import run
from penstock_process.settings import ConfigError
from penstock_worker.config import WorkerConfig, WorkerSecrets
from penstock_worker.gang import GangNews, Joined, Step, may_end, next_step, serves
from penstock_worker.gang_page import GangPage
from penstock_worker.serving import serve_worker


def news(incarnation="one", address="10.0.0.1:6379", *, ready=True, drained=False):
    return GangNews(incarnation=incarnation, ray_address=address, page="http://10.0.0.1:8001", ready=ready, drained=drained)


HERE, LOST = Joined("one", alive=True), Joined("one", alive=False)


@pytest.mark.parametrize(
    ("joined", "said", "step"),
    [
        (None, None, Step.WAIT),
        (None, news(address=""), Step.WAIT),
        (None, news(), Step.JOIN),
        (HERE, news(), Step.STAY),
        (HERE, None, Step.STAY),
        (HERE, news(address=""), Step.STAY),
        (HERE, news("two"), Step.JOIN),
        (LOST, news(), Step.JOIN),
        (LOST, None, Step.WAIT),
    ],
)
def test_a_follower_joins_whatever_leads_now(joined, said, step):
    """Another incarnation or a lost part of Ray is joined anew; a leader that is silent keeps what has joined it."""
    assert next_step(joined, said) is step


def test_a_follower_serves_when_its_gang_does():
    """Ready is the gang's word about the very Ray that this Pod is part of."""
    assert serves(HERE, news())
    for joined, said in ((HERE, news(ready=False)), (HERE, None), (HERE, news("two")), (None, news()), (LOST, news())):
        assert not serves(joined, said)


def test_a_follower_that_leaves_waits_for_the_gang_to_drain():
    """Not while answers run; at once where nothing of this gang can be running any more."""
    assert not may_end(HERE, news(ready=True), 0)
    assert not may_end(HERE, None, 4)
    assert may_end(HERE, None, 5) and may_end(HERE, news(drained=True), 0) and may_end(HERE, news("two"), 0)
    assert may_end(None, news(), 0) and may_end(LOST, news(), 0)


def test_the_page_tells_probes_everything_and_others_nothing():
    """Probes need no token; news and the drain do; a follower's page has neither."""
    told = []

    async def story():
        page = GangPage("fleet", lambda: False, news=news, on_drain=lambda: told.append(1))
        followers = GangPage("fleet", lambda: True)
        ports = [await one.start("127.0.0.1", 0) for one in (page, followers)]
        async with httpx.AsyncClient() as client:
            ask = [f"http://127.0.0.1:{port}" for port in ports]
            assert [(await client.get(f"{ask[0]}{path}")).status_code for path in ("/livez", "/readyz")] == [200, 503]
            assert (await client.get(f"{ask[1]}/readyz")).status_code == 200
            for headers in ({}, {"x-penstock-token": "other"}):
                assert (await client.get(f"{ask[0]}/penstock/gang", headers=headers)).status_code == 403
                assert (await client.post(f"{ask[0]}/penstock/gang/drain", headers=headers)).status_code == 403
            token = {"x-penstock-token": "fleet"}
            assert (await client.get(f"{ask[0]}/penstock/gang", headers=token)).json()["incarnation"] == "one"
            assert (await client.get(f"{ask[0]}/penstock/gang/drain", headers=token)).status_code == 405
            assert told == []
            assert (await client.post(f"{ask[0]}/penstock/gang/drain", headers=token)).status_code == 202
            assert told == [1]
            assert (await client.get(f"{ask[1]}/penstock/gang", headers=token)).status_code == 404
        await page.aclose()
        await followers.aclose()

    run(story())


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"engine_host": "ray", "gang_rank": 2, "gang_size": 2}, "gang_rank is 2; allowed: 0 to 1"),
        ({"engine_host": "ray", "gang_rank": 1, "gang_size": 2}, "gang_leader is ''; allowed: host:port"),
        ({"gang_size": 2}, "gang_size is 2; allowed: 1 where engine_host is process"),
        ({"engine_host": "elsewhere"}, "engine_host is 'elsewhere'; allowed: process, ray"),
    ],
)
def test_a_gang_that_cannot_be_is_refused(settings, said):
    """Field, value and what is allowed."""
    with pytest.raises(ConfigError, match=said):
        WorkerConfig(**settings)


def test_a_gang_without_tokens_is_refused():
    """A Ray over several Pods that asks for nothing would run anybody's code."""
    with pytest.raises(ConfigError, match="RAY_AUTH_TOKEN are not both set; allowed: 1"):
        serve_worker(WorkerConfig(engine_host="ray", gang_size=2), WorkerSecrets(fleet_token="t"))


def test_a_gang_of_vllm_is_refused_until_it_can_span_pods():
    """Rather than one that waits for ranks that never come."""
    config = WorkerConfig(engine_host="ray", gang_size=2, engine="vllm", model_folder="/model")
    with pytest.raises(ConfigError, match="gang_size is 2; allowed: 1 with engine vllm"):
        serve_worker(config, WorkerSecrets(fleet_token="t", ray_token="r"))
