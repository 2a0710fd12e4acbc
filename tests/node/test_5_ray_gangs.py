"""Replicas that span Pods: one Ray a replica, in real pods."""

import yaml
from installed import DEMO, SAMPLE, Penstock
from stream_clients import StreamClients, failures


def test_a_gang_that_loses_a_pod_on_purpose_drains_whole_and_is_made_anew(penstock: Penstock) -> None:
    """Two decode replicas of two Pods each on Ray: one Pod of one is deleted under streams, and no request fails."""
    manifest = yaml.safe_load(SAMPLE.read_text(encoding="utf-8"))
    manifest["metadata"]["name"] = manifest["spec"]["model"]["name"] = "gangs"
    manifest["spec"]["engine"] |= {"host": "Ray", "args": ["--set", "speed=0.2"]}
    manifest["spec"]["pools"][1]["parallelism"] = {"tensor": 2}
    model = penstock.service(DEMO, "gangs")
    model.kubectl("apply", "-f", "-", stdin=yaml.safe_dump(manifest))
    model.wait_settled(prefill=1, decode=2)
    assert len(model.pods("decode")) == 4
    generations = model.generations()
    joined = next(pod for pod in model.pods("decode") if pod not in model.leaders("decode"))
    with StreamClients(penstock.url, "gangs", streams=20) as clients:
        clients.wait_under_way()
        penstock.delete_pod(joined)
        penstock.wait_gone(joined)
        model.wait_settled(prefill=1, decode=2)
        clients.wait_finished(30)
        endings = clients.stop()
    assert failures(endings) == []
    assert [ending for ending in endings if ending.written_by(generations) is None] == []
    model.kubectl("delete", "modelservice", "gangs")
