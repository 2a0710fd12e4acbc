"""Fixtures of the tests on a real node. Not part of `make test`: `make test-node` runs them, as root on Linux; elsewhere they skip."""

import time
from collections.abc import Callable, Generator, Iterator

import pytest
from installed import DEMO, LEAVING, SAMPLE, Penstock, ServedModel, build_image
from real_node import FOLDER, NoNode, RealNode, missing


@pytest.fixture(scope="session")
def say(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Prints a line of progress past pytest's capture."""
    capture = request.config.pluginmanager.getplugin("capturemanager")
    began_s = time.monotonic()

    def print_it(line: str) -> None:
        with capture.global_and_fixture_disabled():
            print(f"\n{line} ({time.monotonic() - began_s:.0f} s)", end="", flush=True)

    return print_it


@pytest.fixture(scope="session")
def node(request: pytest.FixtureRequest) -> Iterator[RealNode]:
    """The one real node, bare. Where there can be none, the Go programs are not built either."""
    why = missing()
    if why:
        pytest.skip(why)
    try:
        with RealNode(request.getfixturevalue("go_programs")) as made:
            yield made
    except NoNode as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="session")
def penstock(node: RealNode, say: Callable[[str], None]) -> Penstock:
    """The node with this checkout's image, the chart installed, and two namespaces."""
    archive = build_image(say)
    say("node: loading the image")
    node.load(archive)
    if archive.is_relative_to(FOLDER):
        archive.unlink()
    say("node: installing the chart")
    release = Penstock(node)
    release.install()
    for namespace in (DEMO, LEAVING):
        node.plane.kubectl("create", "namespace", namespace)
    say("node: installed")
    return release


@pytest.fixture(scope="session")
def sample(penstock: Penstock) -> ServedModel:
    """The sample, applied as it is, and ready."""
    model = penstock.service(DEMO, "sim")
    model.kubectl("apply", "-f", str(SAMPLE))
    model.wait_settled(prefill=1, decode=2)
    return model


@pytest.fixture
def sim(sample: ServedModel) -> ServedModel:
    """The sample with one prefill and three decode workers at a fifth of their speed, whatever the test before has done to it.

    So slow that answers last seconds, and that clients read them as fast as they are written: what a client sees is what is.
    """
    sample.patch({"engine": {"args": ["--set", "speed=0.2"]}})
    sample.scale("prefill", 1)
    sample.scale("decode", 3)
    sample.wait_settled(prefill=1, decode=3)
    return sample


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What the Pods have said goes with a failure."""
    report = yield
    release = getattr(item, "funcargs", {}).get("penstock")
    if report.when == "call" and report.failed and isinstance(release, Penstock):
        report.sections.append(("what the Pods have said", release.node.logs()))
    return report
