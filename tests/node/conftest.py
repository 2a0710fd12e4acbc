"""Fixtures of the tests on a real node. Not part of `make test`: `make test-node` runs them, as root on Linux; elsewhere they skip."""

from collections.abc import Iterator

import pytest
from go_programs import Programs
from real_node import NoNode, RealNode


@pytest.fixture(scope="session")
def node(go_programs: Programs) -> Iterator[RealNode]:
    """The one real node, bare."""
    try:
        with RealNode(go_programs) as made:
            yield made
    except NoNode as reason:
        pytest.skip(str(reason))
