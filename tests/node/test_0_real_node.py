"""The test bed itself: a node that is Ready, one a machine, and gone without a trace."""

import pytest
from go_programs import Programs
from real_node import FOLDER, NoNode, RealNode


def test_a_second_node_on_the_machine_is_refused_and_the_first_goes_on(node: RealNode, go_programs: Programs) -> None:
    """Bridge, link and folder are at fixed places."""
    with pytest.raises(NoNode, match="another test run has a node"), RealNode(go_programs):
        pass
    assert FOLDER.is_dir()
    assert "penstock-node" in node.plane.kubectl("get", "nodes", "--no-headers")
