"""A router process in front of servers given by hand, for tests of plain engines and benchmarks."""

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import httpx
from penstock_cli.child import Child

WAIT_S = 120.0


class Router(NamedTuple):
    """One that runs."""

    url: str
    pid: int


@contextmanager
def routed(folder: Path, options: Sequence[str], environ: Mapping[str, str] | None = None) -> Iterator[Router]:
    """A `penstock router` with these options, once it has live endpoints."""
    announced = folder / "router.url"
    announced.unlink(missing_ok=True)
    command = [sys.executable, "-m", "penstock_cli.main", "router", "--port", "0", "--url-file", str(announced), *options]
    router = Child("router", command, folder / "router.log", environ)
    try:
        deadline_s = time.monotonic() + WAIT_S
        while not (announced.exists() and _ready(announced.read_text().strip())):
            assert router.ended() is None, router.said()
            assert time.monotonic() < deadline_s, router.said()
            time.sleep(0.1)
        yield Router(announced.read_text().strip(), router.pid)
    finally:
        router.stop(10.0)


def _ready(url: str) -> bool:
    try:
        return bool(url) and httpx.get(f"{url}/readyz", trust_env=False).is_success
    except httpx.HTTPError:
        return False
