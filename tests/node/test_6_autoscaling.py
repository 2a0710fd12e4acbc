"""The autoscaler in its Pod: rights, Redis and settings as the chart gives them, deciding about a model and changing its size."""

from control_plane import PATIENCE_S, accepted, wait_until
from installed import DEMO, ROOT, Penstock
from real_node import RealNode

AUTOSCALED = ROOT / "manifests" / "samples" / "sim-autoscaled.yaml"


def test_it_decides_and_brings_a_size_back_into_its_bounds(node: RealNode, penstock: Penstock) -> None:
    """The sample becomes ready and is decided on; with a higher lower bound the autoscaler adds a replica, which serves."""
    model = penstock.service(DEMO, "sim-autoscaled")
    model.kubectl("apply", "-f", str(AUTOSCALED))
    try:
        model.wait_settled(prefill=1, decode=1)

        def decided() -> str:
            conditions = accepted(penstock.plane.client.get(model.path))["status"]["conditions"]
            return next((one["message"] for one in conditions if one["type"] == "ScalingDecided"), "")

        wait_until("a decision", decided, PATIENCE_S * 2)
        pools = [
            {"name": name, "role": name.capitalize(), "autoscaling": {"minReplicas": least, "maxReplicas": 4}}
            for name, least in (("prefill", 1), ("decode", 2))
        ]
        model.patch({"pools": pools})
        model.wait_settled(prefill=1, decode=2)
        wait_until("it says so", lambda: "decode" in decided(), PATIENCE_S)
        restarts = [status["restartCount"] for pod in penstock.pods("autoscaler") for status in pod["status"]["containerStatuses"]]
        assert restarts == [0]
    finally:
        model.kubectl("delete", "-f", str(AUTOSCALED), "--wait=false")
