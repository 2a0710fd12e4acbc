"""The Go programs that the cluster tests run (etcd, Kubernetes, CoreDNS, kwok, kubectl, Helm): found, or built once from their modules.

`$KUBEBUILDER_ASSETS`, where set, names a folder that has them. Else `programs/` is built with the Go on the PATH into the
user's cache folder, under a key made of its sources and Go's version, so that nothing stale is ever run and a second start
costs nothing. `python -m go_programs` builds and says where. Knows nothing of how the programs are run.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

SOURCES = Path(__file__).parent / "programs"
ASSETS_ENV = "KUBEBUILDER_ASSETS"
CACHE_ENV = "PENSTOCK_TEST_PROGRAMS"

NEEDED = ("etcd", "kube-apiserver", "kubectl")
"""What envtest's archives hold, too."""
LINKED = (*NEEDED, "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "kwok", "helm")
"""Names of the one binary that holds most of them."""
BUILT = (*LINKED, "coredns", "pause")
"""The last two are binaries of their own."""

_ONE_BINARY = "programs"
_UNUSED_DAYS = 14
_SHOWN_LOG_BYTES = 2_000

Say = Callable[[str], None]


class NoPrograms(Exception):
    """They are not here and cannot be built; the message says why and what would help."""


class Programs:
    """A folder with the programs. Immutable; `has` tells which of BUILT are there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def has(self, name: str) -> bool:
        return os.access(self.folder / name, os.X_OK)

    def path(self, name: str) -> Path:
        """Raises NoPrograms for one that the folder lacks."""
        if not self.has(name):
            raise NoPrograms(f"{self.folder} has no {name}; leave {ASSETS_ENV} unset to have it built with Go")
        return self.folder / name


def programs(say: Say) -> Programs:
    """Those of `$KUBEBUILDER_ASSETS`, else those in the cache, built first if need be; `say` gets progress lines."""
    assets = os.environ.get(ASSETS_ENV)
    if assets:
        found = Programs(Path(assets))
        for name in NEEDED:
            found.path(name)
        return found
    if shutil.which("go") is None:
        raise NoPrograms(f"neither {ASSETS_ENV} (a folder with {', '.join(NEEDED)}) is set nor is Go on the PATH to build them")
    version = subprocess.run(["go", "version"], capture_output=True, text=True, check=True, timeout=60).stdout
    home = _cache_folder()
    home.mkdir(parents=True, exist_ok=True)
    folder = home / _key(version)
    if not folder.is_dir():
        with _locked(home / "lock", say):
            if not folder.is_dir():
                _build(folder, say)
    os.utime(folder)
    _forget_unused(home)
    return Programs(folder)


def _cache_folder() -> Path:
    """`$PENSTOCK_TEST_PROGRAMS`, else a folder in the user's cache."""
    named = os.environ.get(CACHE_ENV)
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "penstock" / "test-programs"


def _key(go_version: str) -> str:
    digest = hashlib.sha256(go_version.encode())
    for source in (SOURCES / "go.mod", SOURCES / "go.sum", *sorted(SOURCES.rglob("*.go"))):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


def _kubernetes_version() -> str:
    """`v1.36.3`, as go.mod pins it."""
    lines = (SOURCES / "go.mod").read_text(encoding="utf-8").splitlines()
    return next(line.split()[1] for line in lines if line.split()[:1] == ["k8s.io/kubernetes"])


def _build(folder: Path, say: Say) -> None:
    """The binaries and a link for each name, made beside `folder` and renamed: there is never half a folder."""
    version = _kubernetes_version()
    stamp = "k8s.io/component-base/version"
    facts = {"gitVersion": version, "gitMajor": "1", "gitMinor": version.split(".")[1], "gitTreeState": "clean"}
    flags = " ".join(["-s", "-w", *(f"-X {stamp}.{name}={value}" for name, value in facts.items())])
    environ = {**os.environ, "CGO_ENABLED": "0", "GOWORK": "off"}
    environ["GOFLAGS"] = f"{os.environ.get('GOFLAGS', '')} -mod=readonly -buildvcs=false".strip()
    with tempfile.TemporaryDirectory(prefix=".building-", dir=folder.parent) as unfinished, tempfile.TemporaryFile() as log:
        made = Path(unfinished) / "made"
        made.mkdir()
        command = ["go", "build", "-trimpath", "-ldflags", flags, "-o", f"{made}/", "./..."]
        building = subprocess.Popen(command, cwd=SOURCES, env=environ, stdout=log, stderr=log, preexec_fn=_politely)
        try:
            _watch(building, version, say)
        finally:
            building.kill()
            building.wait()
        if building.returncode != 0:
            log.seek(0)
            said = log.read()[-_SHOWN_LOG_BYTES:].decode(errors="replace").strip()
            raise NoPrograms(f"go build in {SOURCES} failed: {said}")
        for name in LINKED:
            (made / name).symlink_to(_ONE_BINARY)
        made.rename(folder)
    say(f"test programs: built {folder}")


def _politely() -> None:
    os.nice(10)


def _watch(building: subprocess.Popen[bytes], version: str, say: Say) -> None:
    began_s = time.monotonic()
    say(f"test programs: building Kubernetes {version}, etcd, CoreDNS, kwok and Helm with Go (once; 3 to 10 minutes, 3 GB of memory)")
    while True:
        try:
            building.wait(30)
            return
        except subprocess.TimeoutExpired:
            say(f"test programs: still building, {time.monotonic() - began_s:.0f} s")


@contextmanager
def _locked(path: Path, say: Say) -> Iterator[None]:
    """One builder at a time; the kernel lets go of the lock when its holder dies."""
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("test programs: another process builds them, waiting")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _forget_unused(home: Path) -> None:
    """210 MB a version: those that no run has touched for two weeks go."""
    for folder in home.iterdir():
        if folder.is_dir() and not folder.name.startswith(".") and time.time() - folder.stat().st_mtime > _UNUSED_DAYS * 86_400:
            shutil.rmtree(folder, ignore_errors=True)


def main() -> int:
    """For `make`: build what is missing; without Go say so and succeed, since the tests skip with the same reason."""
    try:
        found = programs(lambda line: print(line, flush=True))
    except NoPrograms as reason:
        print(f"test programs: {reason}", file=sys.stderr)
        return 1 if os.environ.get("CI") else 0
    print(f"test programs: {found.folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
