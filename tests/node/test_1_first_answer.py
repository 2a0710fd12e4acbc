"""From nothing to a streamed answer of separate prefill and decode workers in real pods, through the router's Service."""

from installed import Penstock, ServedModel
from stream_clients import StreamClients, failures


def test_the_sample_streams_answers_whose_kv_was_moved_from_prefill_to_decode(penstock: Penstock, sample: ServedModel) -> None:
    """Image, chart, sample and nothing else: each answer is prefilled by one Pod and decoded by another, and bytes were moved."""
    with StreamClients(penstock.url, "sim", streams=4) as clients:
        clients.wait_finished(12)
        endings = clients.stop()
    assert failures(endings) == []
    (generation,) = sample.generations()
    assert [ending for ending in endings if ending.written_by([generation]) is None] == []
    uids = {pool: {pod["metadata"]["uid"] for pod in sample.pods(pool)} for pool in ("prefill", "decode")}
    assert {ending.worker("prefill") for ending in endings} <= uids["prefill"]
    assert {ending.worker("decode") for ending in endings} <= uids["decode"]
    assert penstock.metric(sample.pods("decode"), "penstock_worker_kv_transferred_bytes_total", direction="pulled") > 0


def test_status_and_endpoint_say_where_and_how_it_is_served(penstock: Penstock, sample: ServedModel) -> None:
    """`kubectl get modelservice`: ready, how many of each role, and the Service that answers."""
    said = sample.kubectl("get", "modelservice", "sim", "--no-headers").split()
    assert said[:4] == ["sim", "True", "1/1", "2/2"]
    endpoint = sample.kubectl("get", "modelservice", "sim", "-o", "jsonpath={.status.endpoint}")
    assert endpoint == "http://penstock-router.penstock-system:8000"
