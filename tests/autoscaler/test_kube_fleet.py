"""The Kubernetes actuator on a real API server, with the chart's rights: what it reads, what it writes, and whom it does not fight."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator

import pytest
from control_plane import ControlPlane, accepted, wait_until
from kube_bed import ACCOUNT, KubeBed, decided
from penstock_autoscaler.decision import Reason
from penstock_autoscaler.kube_api import Changed
from penstock_autoscaler.kube_fleet import KubeFleet
from penstock_autoscaler.kube_owners import seconds_of
from penstock_autoscaler.observation import Phase, Start
from penstock_autoscaler.rights import RULES
from penstock_core.endpoint import Load, Role, StartUp, WorkerRecord
from penstock_core.profile import PROFILES
from penstock_kvindex.redis import RedisIndex

from tests.operator.conftest import denied

Story = Callable[[KubeFleet], Awaitable[None]]


@pytest.fixture
def bed(control_plane: ControlPlane, namespace: str, redis_url: str, unused_model: str) -> Iterator[KubeBed]:
    before = len(control_plane.audited())
    yield KubeBed(control_plane, namespace, redis_url, unused_model)
    events = [event for event in control_plane.audited()[before:] if event["user"]["username"].endswith(ACCOUNT)]
    assert events, "nothing was audited of the autoscaler"
    assert denied(events) == set()


def play(bed: KubeBed, story: Story, name: str = "llama") -> None:
    async def run() -> None:
        async with asyncio.timeout(120), bed.fleet(name) as fleet:
            await story(fleet)

    asyncio.run(run())


def test_a_look_gives_bounds_targets_and_replicas(bed: KubeBed, redis_url: str) -> None:
    """Bounds and budget of the resource; of each leading Pod its phase, its times on the Windows' clock, its load in the registry."""
    slo = {"ttftMilliseconds": 700, "itlMilliseconds": 30, "attainmentPercent": 100}
    bed.make(sizes=(2, 3), slo=slo, scaling={"maxAccelerators": 9})
    quick, slow = bed.pod("prefill", "quick", ready_after_s=20, run_after_s=9), bed.pod("prefill", "slow", ready_after_s=60)
    leaving = bed.pod("decode", "leaving", ready_after_s=40, **{"serving.penstock.dev/drain": "ScaledIn"})
    starting = bed.pod("decode", "starting")
    bed.pod("decode", "of-another", service="other")
    profile = PROFILES["qwen3-32b-h100x2"]
    record = WorkerRecord(
        id=quick,
        url="http://10.0.0.1:8000",
        role=Role.PREFILL,
        pool="prefill",
        model=bed.model,
        epoch=1,
        profile=profile,
        kv_total_tokens=1_000,
        block_tokens=64,
        max_model_tokens=8_192,
        start_up=StartUp(began_s=5_000.0, listening_s=5_003.5, ready_s=5_010.5),
    )

    async def story(fleet: KubeFleet) -> None:
        index = RedisIndex(redis_url, bed.model, lease_s=600.0)
        lease = await index.register(record)
        await index.renew(lease, 1, Load(running=3, waiting=2, prefill_tokens=500, kv_used_tokens=100, kv_total_tokens=1_000))
        seen = await fleet.look(bed.now + 1_000.0)
        assert (seen.target.slo.ttft_s, seen.target.slo.itl_s, seen.target.most_accelerators) == (0.7, 0.03, 9)
        assert 0.99 < seen.target.attainment_ratio < 1.0
        assert (seen.paused, seen.overridden) == ("", {})
        prefill, decode = seen.pools
        assert (prefill.role, prefill.desired, prefill.min_replicas, prefill.max_replicas) == (Role.PREFILL, 2, 0, 4)
        assert (decode.role, decode.desired, decode.min_replicas, decode.max_replicas) == (Role.DECODE, 3, 1, 4)
        assert (prefill.start_s, prefill.profile) == (profile.start_s, profile)
        by_id = {one.id: one for one in seen.replicas}
        assert {id_: one.phase for id_, one in by_id.items()} == {
            quick: Phase.READY,
            slow: Phase.READY,
            leaving: Phase.DRAINING,
            starting: Phase.STARTING,
        }
        one = by_id[quick]
        assert (one.running, one.waiting, one.prefill_tokens, one.kv_used_tokens, one.kv_tokens) == (3, 2, 500, 100, 1_000)
        assert one.ready_s is not None and one.ready_s - one.asked_s == pytest.approx(20.0)
        told = Start(name=quick, schedule_s=2.0, pull_s=7.0, process_s=3.5, engine_s=7.0, rest_s=0.5)
        assert one.start == told, "by the Pod's times and the worker's own"
        assert by_id[slow].start == Start(name=slow, engine_s=60.0), "of one that says nothing the whole is known"
        assert by_id[starting].start is by_id[leaving].start is None
        made = accepted(bed.plane.client.get(f"/api/v1/namespaces/{bed.namespace}/pods/quick"))["metadata"]["creationTimestamp"]
        assert one.asked_s == pytest.approx(seconds_of(made) + 1_000.0), "on the clock it was given"
        assert by_id[starting].ready_s is None
        await index.aclose()

    play(bed, story)


def test_sizes_are_written_through_scale_and_nothing_else(bed: KubeBed) -> None:
    """What differs only, within the bounds, more for those that never became ready; the operator keeps every other field."""
    bed.make()
    stuck = bed.pod("decode", "stuck")

    async def story(fleet: KubeFleet) -> None:
        await fleet.look(bed.now)
        before = bed.worker_pool("prefill")["metadata"]["resourceVersion"]
        await fleet.carry_out(decided(prefill=1, decode=2, late=(stuck,)))
        assert bed.sizes() == {"prefill": 1, "decode": 3}
        assert bed.worker_pool("prefill")["metadata"]["resourceVersion"] == before
        await fleet.look(bed.now)
        await fleet.carry_out(decided(prefill=0, decode=9))
        assert bed.sizes() == {"prefill": 0, "decode": 4}
        managed = [one for one in bed.worker_pool("decode")["metadata"]["managedFields"] if one["manager"] == ACCOUNT]
        assert [(one["subresource"], one["fieldsV1"]) for one in managed] == [("scale", {"f:spec": {"f:replicas": {}}})]
        assert (await fleet.look(bed.now)).overridden == {}, "its own writing is nobody else's"

    play(bed, story)


def test_a_size_changed_since_the_look_is_not_overwritten(bed: KubeBed) -> None:
    """The write is refused; the next look sees the other's number."""
    bed.make()

    async def story(fleet: KubeFleet) -> None:
        await fleet.look(bed.now)
        bed.scale_by_hand("decode", 3)
        with pytest.raises(Changed):
            await fleet.carry_out(decided(prefill=1, decode=2))
        assert bed.sizes()["decode"] == 3
        assert (await fleet.look(bed.now)).pools[1].desired == 3

    play(bed, story)


def test_a_size_set_by_hand_is_respected_for_a_while_and_beyond_the_bounds_for_good(bed: KubeBed) -> None:
    """Told as a condition with who and until when; afterwards the autoscaler goes on."""
    bed.make(scaling={"manualHoldSeconds": 600})

    async def story(fleet: KubeFleet) -> None:
        bed.scale_by_hand("decode", 3)
        seen = await fleet.look(bed.now)
        assert list(seen.overridden) == ["decode"] and "set to 3 by kubectl; it stays so until 20" in seen.overridden["decode"]
        await fleet.carry_out(decided(prefill=2, decode=1))
        assert bed.sizes() == {"prefill": 2, "decode": 3}
        await fleet.show(decided(prefill=2, decode=3))
        status, reason, message = bed.condition("ScalingConflict")
        assert (status, reason) == ("True", "SetByHand") and message.startswith("decode: set to 3 by kubectl")
        bed.now += 599.0
        assert list((await fleet.look(bed.now)).overridden) == ["decode"]
        async with bed.fleet() as successor:
            bed.now += 60.0
            assert (await successor.look(bed.now)).overridden == {}, "another autoscaler knows since when"
        assert (await fleet.look(bed.now)).overridden == {}
        await fleet.carry_out(decided(prefill=2, decode=1))
        assert bed.sizes() == {"prefill": 2, "decode": 1}
        await fleet.look(bed.now)
        await fleet.show(decided(Reason.STEADY, prefill=2, decode=1))
        assert bed.condition("ScalingConflict") == ("False", "None", "")
        bed.scale_by_hand("decode", 9)
        bed.now += 100_000.0
        seen = await fleet.look(bed.now)
        assert "set to 9 by kubectl, out of its bounds 1 to 4" in seen.overridden["decode"]
        await fleet.carry_out(decided(prefill=2, decode=1))
        assert bed.sizes()["decode"] == 9

    play(bed, story)


@pytest.mark.usefixtures("controllers")
def test_an_hpa_on_the_pool_is_told_and_not_fought(bed: KubeBed) -> None:
    """The real HPA controller brings the pool to its own minimum; the autoscaler leaves it there and says what to do."""
    bed.make()
    target = {"apiVersion": "serving.penstock.dev/v1alpha1", "kind": "WorkerPool", "name": "llama-decode"}
    metadata = {"name": "cpu", "namespace": bed.namespace}
    spec = {"scaleTargetRef": target, "minReplicas": 3, "maxReplicas": 5}
    hpa = {"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": metadata, "spec": spec}
    accepted(bed.plane.apply(hpa))
    wait_until("the HPA has scaled it", lambda: bed.sizes()["decode"] == 3)

    async def story(fleet: KubeFleet) -> None:
        seen = await fleet.look(bed.now)
        assert seen.overridden == {"decode": f"the HorizontalPodAutoscaler {bed.namespace}/cpu sizes it; delete that, or the pool's bounds"}
        await fleet.carry_out(decided(prefill=2, decode=1))
        assert bed.sizes() == {"prefill": 2, "decode": 3}
        for _ in range(2):
            await fleet.show(decided(prefill=2, decode=3))
            assert bed.condition("ScalingConflict")[:2] == ("True", "HorizontalPodAutoscaler")
            await fleet.look(bed.now)
        assert bed.events().count(("Warning", "ScalingConflict")) == 1

    play(bed, story)


def test_a_paused_service_says_so(bed: KubeBed) -> None:
    """`scaling.paused`: the brain is told in words."""
    bed.make(scaling={"paused": True})

    async def story(fleet: KubeFleet) -> None:
        assert (await fleet.look(bed.now)).paused == "scaling.paused is true"

    play(bed, story)


def test_a_pool_without_bounds_is_counted_and_left_alone(bed: KubeBed) -> None:
    """Its size is given: least and most are what it has."""
    pools = [{"name": "prefill", "role": "Prefill"}, {"name": "decode", "role": "Decode", "autoscaling": {"maxReplicas": 4}}]
    bed.make(sizes=(3, 1), pools=pools)

    async def story(fleet: KubeFleet) -> None:
        prefill, _ = (await fleet.look(bed.now)).pools
        assert (prefill.min_replicas, prefill.desired, prefill.max_replicas) == (3, 3, 3)
        await fleet.carry_out(decided(prefill=1, decode=2))
        assert bed.sizes() == {"prefill": 3, "decode": 2}

    play(bed, story)


def test_a_decision_is_shown_once_beside_the_operators_conditions(bed: KubeBed) -> None:
    """Written with a change of sizes or of the reason, not with every new number; an Event for each change of sizes."""
    made = bed.make()
    ready = {"type": "Ready", "status": "True", "reason": "Serving", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}
    body = {key: made[key] for key in ("apiVersion", "kind")} | {"metadata": {"name": "llama", "namespace": bed.namespace}}
    accepted(bed.plane.apply({**body, "status": {"conditions": [ready]}}, manager="penstock-operator", status=True))

    async def story(fleet: KubeFleet) -> None:
        await fleet.look(bed.now)
        up = decided(Reason.UP, "8 requests a second need it", prefill=1, decode=3)
        await fleet.carry_out(up)
        await fleet.show(up)
        assert bed.condition("ScalingDecided") == ("True", "Up", "decode 1 to 3: 8 requests a second need it")
        assert bed.condition("Ready")[:2] == ("True", "Serving")
        await fleet.look(bed.now)
        await fleet.show(decided(Reason.STEADY, "7.5 requests a second", prefill=1, decode=3))
        await fleet.look(bed.now)
        version = bed.service()["metadata"]["resourceVersion"]
        for rate in ("7.4", "7.3"):
            await fleet.show(decided(Reason.STEADY, f"{rate} requests a second", prefill=1, decode=3))
            await fleet.show(decided(Reason.WAITING, f"{rate} requests a second", prefill=1, decode=3))
        assert bed.service()["metadata"]["resourceVersion"] == version
        blind = decided(Reason.NO_DATA, "no router has told anything", valid=False, prefill=1, decode=3)
        await fleet.show(blind)
        assert bed.service()["metadata"]["resourceVersion"] == version, "one window that is late is no news"
        bed.now += 60.0
        await fleet.show(blind)
        assert bed.condition("ScalingDecided") == ("False", "NoData", "no router has told anything")
        assert bed.events() == [("Normal", "ScaledUp"), ("Warning", "ScalingNoData")]

    play(bed, story)


def test_of_two_services_of_one_model_the_older_is_sized(bed: KubeBed) -> None:
    """The younger's traffic cannot be told apart from the older's."""
    bed.make("llama")
    bed.make("younger")

    async def story() -> None:
        async with asyncio.timeout(60), bed.scope() as scope:
            first, second = await scope.services()
            assert (first.key, first.model, first.shadowed_by) == ((bed.namespace, "llama"), bed.model, None)
            assert (second.key, second.shadowed_by) == ((bed.namespace, "younger"), (bed.namespace, "llama"))

    asyncio.run(story())


def test_with_its_rights_nothing_else_can_be_done(control_plane: ControlPlane, namespace: str, redis_url: str, unused_model: str) -> None:
    """No wildcard; a WorkerPool's spec, a ModelService's, Pods and Secrets are out of reach."""
    bed = KubeBed(control_plane, namespace, redis_url, unused_model)
    bed.make()
    assert "*" not in str(RULES)

    async def rights() -> None:
        async with bed.scope() as scope:
            await scope.services()

    asyncio.run(rights())
    kubeconfig = bed.plane.service_account_kubeconfig("penstock-system", ACCOUNT)
    merge = ("--type=merge", "-p", '{"spec": {"replicas": 4}}', "-n", bed.namespace)
    tried = [("patch", "wp", "llama-decode", *merge), ("patch", "msvc", "llama", *merge), ("get", "secrets", "-n", bed.namespace)]
    tried += [("delete", "pod", "any", "-n", bed.namespace), ("get", "lease", "-n", "penstock-system"), ("get", "nodes")]
    allowed = [words for words in tried if "cannot" not in bed.plane.kubectl(*words, check=False, kubeconfig=kubeconfig)]
    assert allowed == []
    assert bed.sizes()["decode"] == 1
