"""What the chart renders to, for a few installations: the committed files, and how they are made again.

`make golden` runs it; test_renders compares. `install.yaml` is for users without Helm: the chart as it stands, with its
namespace. The others leave out the resource definitions, which manifests/crds holds. Knows nothing of a cluster.
"""

import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from go_programs import NoPrograms, Programs, programs

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "penstock"
INSTALL = ROOT / "manifests" / "install.yaml"
GOLDEN = Path(__file__).parent / "golden"
VALUES = Path(__file__).parent / "values"
NAMESPACE = "penstock-system"
_HEADER = "# The chart charts/penstock as it stands, rendered by `make golden`; edits are overwritten. Without Helm:\n"
_USE = "#   kubectl apply --server-side -f manifests/install.yaml\n"
_NAMESPACE = f"""---
apiVersion: v1
kind: Namespace
metadata:
  name: {NAMESPACE}
  labels:
    pod-security.kubernetes.io/enforce: restricted
"""


class Render(NamedTuple):
    """One installation: its committed file and the words of `helm template`."""

    path: Path
    words: tuple[str, ...]
    head: str = ""


_NO_CRDS = ("--set", "crds.install=false")
_PROMETHEUS = [word for kind in ("ServiceMonitor", "PodMonitor", "PrometheusRule") for word in ("-a", f"monitoring.coreos.com/v1/{kind}")]

RENDERS = (
    Render(INSTALL, (), _HEADER + _USE + _NAMESPACE),
    Render(GOLDEN / "default.yaml", _NO_CRDS),
    Render(GOLDEN / "namespaced.yaml", (*_NO_CRDS, "--set", "watchNamespace=models", "--set", "rbac.aggregate=false")),
    Render(GOLDEN / "production.yaml", (*_NO_CRDS, "--values", str(VALUES / "production.yaml"), *_PROMETHEUS)),
)


def rendered(found: Programs, render: Render) -> str:
    """The text that `render.path` should hold. Raises AssertionError with what Helm said."""
    words = ["template", "penstock", str(CHART), "--namespace", NAMESPACE, *render.words]
    done = helm(found, *words)
    if done.returncode != 0:
        raise AssertionError(done.stderr)
    return render.head + done.stdout


def helm(found: Programs, *words: str) -> subprocess.CompletedProcess[str]:
    """Helm without a cluster."""
    environ = {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", "KUBECONFIG": "/nonexistent"}
    return subprocess.run([str(found.path("helm")), *words], capture_output=True, text=True, timeout=120, env=environ, check=False)


def main() -> int:
    """Write every file that differs."""
    try:
        found = programs(lambda line: print(line, flush=True))
        for render in RENDERS:
            text = rendered(found, render)
            if not render.path.is_file() or render.path.read_text(encoding="utf-8") != text:
                render.path.write_text(text, encoding="utf-8")
                print(f"wrote {render.path.relative_to(ROOT)}")
    except NoPrograms as reason:
        print(f"make golden: {reason}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
