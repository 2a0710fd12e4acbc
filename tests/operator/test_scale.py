"""The benchmark with many ModelServices, in small: what it counts is held to its bars here, what it times is not."""

import json
import subprocess
import sys
from pathlib import Path

from go_programs import Programs

ROOT = Path(__file__).parents[2]
BARS = {
    "writes a child, WorkerPools' statuses among them": 2.0,
    "status writes a ModelService": 4.0,
    "memory at its most": 250.0,
    "idle: server-side applies": 0.0,
    "restart: server-side applies": 0.0,
    "errors in the log": 0.0,
}


def test_writes_and_memory_stay_within_their_bars(go_programs: Programs, tmp_path: Path) -> None:
    """Six ModelServices with a registry: few writes, none when idle or after a restart, and a table with every figure."""
    words = ["--services", "6", "--rounds", "1", "--seconds", "2", "--set", "registry_interval_s=3", "--keep", str(tmp_path / "figures")]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.operator_scale", *words], cwd=ROOT, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr[-3_000:]
    rows = {row["name"]: row for row in json.loads((tmp_path / "figures.json").read_text())["rows"]}
    assert {name: rows[name]["median"] for name, bar in BARS.items() if rows[name]["median"] > bar} == {}
    assert rows["50 changes a second: writes a change"]["median"] > 0, "the changes were seen"
