"""Fixtures for tests on a real API server: one control plane a session, a namespace a test, private planes for rough tests.

tests/conftest.py hands them to every room. Without the programs, and without Go to build them, the tests skip and say why.
"""

import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from component_flags import CONTROLLERS, KWOK, SCHEDULER
from control_plane import ControlPlane, accepted, wait_until
from go_programs import NoPrograms, Programs, programs

ROOT = Path(__file__).parents[2]
CRD_FILES = sorted((ROOT / "manifests" / "crds").glob("*.yaml"))

_numbers = itertools.count()


@pytest.fixture(scope="session")
def go_programs(request: pytest.FixtureRequest) -> Programs:
    """The programs, built now if nobody has yet; the progress lines get past pytest's capture."""
    capture = request.config.pluginmanager.getplugin("capturemanager")

    def say(line: str) -> None:
        with capture.global_and_fixture_disabled():
            print(f"\n{line}", flush=True)

    try:
        return programs(say)
    except NoPrograms as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="session")
def control_plane(go_programs: Programs) -> Iterator[ControlPlane]:
    """The session's control plane, empty but for Penstock's CRDs. Tests keep apart by namespaces; none stops a component."""
    with ControlPlane(go_programs, CRD_FILES) as plane:
        yield plane


@pytest.fixture(scope="session")
def fake_node(control_plane: ControlPlane) -> str:
    """A node with 8 GPUs on the session's control plane, played by kwok; label `type: kwok`. Skips without controllers or kwok."""
    for name in (CONTROLLERS, SCHEDULER, KWOK):
        if not control_plane.binaries.has(name):
            pytest.skip(f"{control_plane.binaries.folder} has no {name}")
    control_plane.add_fake_node("fake-0", **{"nvidia.com/gpu": "8"})
    return "fake-0"


@pytest.fixture(scope="session")
def controllers(control_plane: ControlPlane) -> None:
    """For tests that need the controller manager: garbage collection, ServiceAccounts, the HorizontalPodAutoscaler."""
    if not control_plane.has_controllers:
        pytest.skip(f"{control_plane.binaries.folder} has no {CONTROLLERS}")


@pytest.fixture
def make_control_plane(go_programs: Programs) -> Iterator[Callable[[], ControlPlane]]:
    """Starts a private control plane at each call (about 5 s), CRDs installed, for tests that stop, pause or fill theirs."""
    with ExitStack() as planes:

        def make() -> ControlPlane:
            return planes.enter_context(ControlPlane(go_programs, CRD_FILES))

        yield make


@pytest.fixture
def namespace(control_plane: ControlPlane) -> Iterator[str]:
    """A namespace of the test's own on the session's control plane; it is deleted afterwards, without waiting."""
    name = f"test-{next(_numbers)}"
    accepted(control_plane.client.post("/api/v1/namespaces", json={"metadata": {"name": name}}))
    account = f"/api/v1/namespaces/{name}/serviceaccounts/default"
    if control_plane.has_controllers:
        wait_until(f"ServiceAccount of {name}", lambda: control_plane.client.get(account).is_success)
    yield name
    accepted(control_plane.client.delete(f"/api/v1/namespaces/{name}"))
