"""`kill -9` under 50 streams: the streams of what was killed end with a clear error, are counted, and nothing else fails."""

from control_plane import Object
from installed import Penstock, ServedModel
from stream_clients import Ending, StreamClients, failures

AFTERWARDS = 60


def container_id(pod: Object) -> str:
    return str(pod["status"]["containerStatuses"][0]["containerID"])


def killed_under_load(penstock: Penstock, sim: ServedModel, victim: Object) -> list[Ending]:
    """All endings, of which some follow the victim's return."""
    with StreamClients(penstock.url, "sim") as clients:
        clients.wait_under_way()
        penstock.node.kill(container_id(victim))
        penstock.wait_restarted(victim)
        sim.wait_settled(prefill=1, decode=3)
        clients.wait_finished(AFTERWARDS)
        return list(clients.stop())


def test_a_decode_worker_is_killed(penstock: Penstock, sim: ServedModel) -> None:
    """Its streams that had begun end with an error event and the outcome `upstream_failed`; those that had not go elsewhere."""
    routers, victim = penstock.pods("router"), sim.pods("decode")[0]
    failed = {"name": "penstock_router_requests_total", "outcome": "upstream_failed"}
    before = penstock.metric(routers, **failed)
    endings = killed_under_load(penstock, sim, victim)
    hit = [ending for ending in endings if ending.told]
    assert hit, "no stream ran on it"
    assert {ending.worker("decode") for ending in hit} == {victim["metadata"]["uid"]}
    assert all("broke off" in ending.error["message"] for ending in hit if ending.error)
    assert failures(endings, but=lambda ending: ending.told) == []
    assert penstock.metric(routers, **failed) - before == len(hit)


def test_a_router_is_killed(penstock: Penstock, sim: ServedModel) -> None:
    """Its clients see the connection break, never a whole answer; the engines end what nobody reads; the other router goes on."""
    victim = penstock.pods("router")[0]
    assert penstock.metric([victim], "penstock_router_requests_total") > 0
    aborted = penstock.metric(sim.pods(), "penstock_worker_aborted_total")
    endings = killed_under_load(penstock, sim, victim)
    hit = [ending for ending in endings if ending.broke_off]
    assert hit, "no stream ran through it"
    assert not any(ending.done for ending in hit)
    assert failures(endings, but=lambda ending: ending.broke_off) == []
    assert penstock.metric(sim.pods(), "penstock_worker_aborted_total") - aborted >= len(hit)
