"""A ModelService that is deleted under load drains and then goes, alone or with its namespace; what else is served goes on."""

import pytest
import yaml
from control_plane import PATIENCE_S, wait_until
from installed import LEAVING, SAMPLE, Penstock, ServedModel
from stream_clients import StreamClients, failures

GONE = {404, 502, 503}
"""What a request gets whose model has no worker any more; 502 while the last ones refuse it and are still registered."""


def served(penstock: Penstock, name: str) -> ServedModel:
    """The sample under another name, ready."""
    model = penstock.service(LEAVING, name)
    manifest = yaml.safe_load(SAMPLE.read_text(encoding="utf-8"))
    manifest["metadata"]["name"] = manifest["spec"]["model"]["name"] = name
    model.kubectl("apply", "-f", "-", stdin=yaml.safe_dump(manifest))
    model.wait_settled(prefill=1, decode=2)
    return model


@pytest.mark.parametrize("what", ["modelservice", "namespace"])
def test_a_model_service_deleted_under_load_drains_and_goes(penstock: Penstock, sim: ServedModel, what: str) -> None:
    """Answers that had begun come to their end; later requests are refused in words; no Pod and no object is left."""
    model = served(penstock, f"leaving-{['modelservice', 'namespace'].index(what)}")
    (generation,) = model.generations()
    leaving = StreamClients(penstock.url, model.name, streams=20, tokens=(150, 300))
    with leaving as clients, StreamClients(penstock.url, "sim", streams=10) as others:
        clients.wait_under_way()
        if what == "namespace":
            penstock.plane.kubectl("delete", "namespace", LEAVING, "--wait=false")
        else:
            model.kubectl("delete", "modelservice", model.name, "--wait=false")
        wait_until("no Pod", lambda: not model.pods(), PATIENCE_S * 2)
        endings, beside = clients.stop(), others.stop()
    begun = [ending for ending in endings if ending.status == 200]
    assert len(begun) >= 18
    assert failures(begun) == []
    assert [ending for ending in begun if ending.written_by([generation]) is None] == []
    assert {ending.status for ending in endings} - {200} <= GONE
    assert failures(beside) == []
    if what == "namespace":
        wait_until("no namespace", lambda: penstock.plane.client.get(f"/api/v1/namespaces/{LEAVING}").status_code == 404, PATIENCE_S * 2)
    else:
        kinds = "modelservice,workerpool,service,secret,networkpolicy,poddisruptionbudget,controllerrevision"
        wait_until("nothing left", lambda: "No resources found" in model.kubectl("get", kinds), PATIENCE_S)
