"""`make bench`: the benchmarks of this folder, one after another, each in a process of its own.

One that fails is told and does not stop the others; the exit status says whether all ran.
"""

import subprocess
import sys
import time

BENCHMARKS = ("router_inprocess", "router_unary", "router_stream", "decision", "index", "pd", "overload")
SIMULATED = ("simulator_real", "ranking_real", "simulator", "robustness", "ablation", "replicas")
"""Run when named only: they take long, and most of them need traces that are not part of the project (docs/benchmarks.md)."""
_MOST_S = 3_600


def main() -> int:
    """Run those named on the command line, or all; options (`--quick`) are handed on."""
    names = [word for word in sys.argv[1:] if not word.startswith("-")] or list(BENCHMARKS)
    options = [word for word in sys.argv[1:] if word.startswith("-")]
    failed = []
    for name in names:
        if name not in BENCHMARKS + SIMULATED:
            sys.stderr.write(f"benchmark is {name!r}; allowed: {', '.join(BENCHMARKS + SIMULATED)}\n")
            return 2
        began = time.monotonic()
        print(f"== {name}", flush=True)
        try:
            status = subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *options], timeout=_MOST_S, check=False).returncode
        except subprocess.TimeoutExpired:
            status = 124
        print(f"== {name}: {time.monotonic() - began:.0f} s\n", flush=True)
        if status:
            failed.append(name)
    if failed:
        sys.stderr.write(f"failed: {', '.join(failed)}\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
