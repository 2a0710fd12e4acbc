"""What the router learns while it serves simulated fleets, with wrong declarations."""

import pytest
from penstock_autoscaler.observation import Pool, Target
from penstock_autoscaler.scaler import Scaler
from penstock_core.endpoint import Role
from penstock_core.profile import DEFAULT_PROFILE
from penstock_core.slo import Slo
from penstock_simulator.autoscaled import Autoscaled
from penstock_simulator.cluster import Cluster, replay
from penstock_simulator.generate import generate, parse_traffic
from penstock_simulator.setup import Setup, WorkerSpec


@pytest.mark.parametrize("speed", [2.0, 0.67])
@pytest.mark.parametrize("divided", [False, True])
def test_a_wrong_declared_profile_is_corrected(speed, divided):
    """Engines are not as fast as they say: before 1,200 requests are over, the router's profile is the true one within 4 %."""
    declared = DEFAULT_PROFILE.at_speed(speed)
    roles = (Role.PREFILL, Role.DECODE) if divided else (Role.BOTH, Role.BOTH)
    workers = tuple(WorkerSpec(id=f"w{i}", role=role, declared=declared) for i, role in enumerate(roles))
    workload = generate(parse_traffic("poisson:requests=1200,rate=5,prompt_tokens=1500,output_tokens=120"))
    cluster = Cluster(workload, Setup(workers=workers, slo=Slo(2.0, 0.05)))
    cluster.run()
    beliefs = cluster._routers.schedulers[0].beliefs
    truth, wrong = DEFAULT_PROFILE.coefficients(), declared.coefficients()
    for w in range(2):
        prefill, decode = beliefs.rows[w, :3], beliefs.rows[w, 7:11]
        if not divided or w == 0:
            for tokens in (300.0, 1_500.0, 5_000.0):
                believed, true = (row[0] + (row[1] + row[2] * tokens) * tokens for row in (prefill, truth))
                assert believed == pytest.approx(true, rel=0.04)
        if not divided or w == 1:
            for context in (3_000.0, 15_000.0):
                believed, true = (row[0] + row[1] * 5.0 + row[2] * context for row in (decode, truth[7:11]))
                assert believed == pytest.approx(true, rel=0.04)
        if divided:  # what it never does is as declared, or as much faster as the other one has turned out to be
            idle, said = (decode, wrong[7:11]) if w == 0 else (prefill, wrong[:3])
            assert list(idle) == pytest.approx(list(said * min(1.0, speed)), rel=0.15)


def test_the_autoscaler_is_told_what_routers_learned():
    """Declared twice as fast as they are: once the fit has converged, the brain sizes by the truth within 4 %, and says so."""
    declared = DEFAULT_PROFILE.at_speed(2.0)
    pool = Pool(name="both", role=Role.BOTH, desired=2, min_replicas=2, max_replicas=2, profile=declared, start_s=10.0)
    seen = []
    loop = Autoscaled(Scaler(), Target(slo=Slo(2.0, 0.05)), [pool], 15.0, seen=lambda one: one)
    step = loop._brain.step
    loop._brain.step = lambda one: (seen.append(one.pools[0]), step(one))[1]
    workers = tuple(WorkerSpec(id=f"w{i}", declared=declared) for i in range(2))
    workload = generate(parse_traffic("poisson:requests=1200,rate=5,prompt_tokens=1500,output_tokens=120"))
    replay(workload, Setup(workers=workers, slo=Slo(2.0, 0.05), make_controller=lambda: loop))
    assert (seen[0].profile, seen[0].fit) == (declared, None)
    assert seen[-1].fit is not None
    for tokens in (300, 1_500, 5_000):
        assert seen[-1].profile.prefill_s(tokens) == pytest.approx(DEFAULT_PROFILE.prefill_s(tokens), rel=0.04)
    for context in (3_000.0, 15_000.0):
        assert seen[-1].profile.decode_s(5, context) == pytest.approx(DEFAULT_PROFILE.decode_s(5, context), rel=0.04)


def test_an_endpoint_slower_than_its_class_is_known_as_slow():
    """One of four declares what its siblings do and takes twice as long: its profile follows, theirs stay true within 4 %."""
    workers = tuple(
        WorkerSpec(id=f"w{i}", declared=DEFAULT_PROFILE, profile=DEFAULT_PROFILE.at_speed(0.5 if i == 2 else 1.0)) for i in range(4)
    )
    cluster = Cluster(generate(parse_traffic("poisson:requests=2400,rate=12,prompt_tokens=1500,output_tokens=120")), Setup(workers=workers))
    cluster.run()
    scheduler, true = cluster._routers.schedulers[0], DEFAULT_PROFILE.prefill_s(1_500)
    for w in range(4):
        row = scheduler.beliefs.rows[w]
        believed = row[0] + (row[1] + row[2] * 1_500.0) * 1_500.0
        assert believed == pytest.approx(true * (2.0 if w == 2 else 1.0), rel=0.04), w
    assert list(scheduler.profiles.states()[0].apart) == ["w2"]


def test_workers_that_nobody_has_measured_are_hoped_to_be_as_much_better_as_the_others():
    """All declare half their speed, which puts the slow half beyond the ITL target: what the fast half shows opens it to requests."""
    fast, slow = DEFAULT_PROFILE, DEFAULT_PROFILE.at_speed(0.5)
    workers = tuple(WorkerSpec(id=f"w{i}", profile=one, declared=one.at_speed(0.5)) for i, one in enumerate((fast, fast, slow, slow)))
    workload = generate(parse_traffic("poisson:requests=2400,rate=14,prompt_tokens=1500,output_tokens=120"))
    cluster = Cluster(workload, Setup(workers=workers, slo=Slo(2.0, 0.025)))
    cluster.run()
    rows = cluster._routers.schedulers[0].beliefs.rows
    for context in (3_000.0, 15_000.0):
        believed = rows[3, 7] + rows[3, 8] * 3.0 + rows[3, 9] * context
        declared = slow.at_speed(0.5).decode_s(3, context)
        assert believed < 0.6 * declared, (believed, declared)


def test_without_fitting_the_declared_profile_stays():
    """`fitted=False` is what users choose who trust their own measurements."""
    declared = DEFAULT_PROFILE.at_speed(2.0)
    workers = (WorkerSpec(id="w0", declared=declared),)
    workload = generate(parse_traffic("poisson:requests=600,rate=3,prompt_tokens=1500,output_tokens=60"))
    cluster = Cluster(workload, Setup(workers=workers, fitted=False))
    cluster.run()
    assert list(cluster._routers.schedulers[0].beliefs.rows[0, :18]) == list(declared.coefficients()[:18])
