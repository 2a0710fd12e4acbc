"""One real Kubernetes node on this machine: containerd, kubelet, kube-proxy and CoreDNS beside a control plane. Linux, root.

The node lives in namespaces of its own (processes, mounts, network), as a container would: pods, shims, mounts, the bridge and the
packet filter's rules all end with the one process that holds them, which ends with this one, whatever ends it. What could stay is a
folder, cgroups and a link, at fixed places: `start` removes what a killed run has left. One node a machine, by a lock of the kernel's.
"""

import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

import node_files
from component_flags import KWOK, SERVICE_RANGE
from control_plane import PATIENCE_S, ControlPlane, wait_until
from go_programs import Programs
from node_files import BRIDGE, CGROUP, GATEWAY, LINK_BITS, LINK_HOST, LINK_NODE, NAMESPACE, NODE, POD_RANGE
from penstock_cli.child import Child

FOLDER = Path("/var/lib/penstock-test-node")
"""At a fixed place, so that it is found after a crash; on a disk, for images lie in it."""
COMMANDS = {
    "containerd": "containerd",
    "ctr": "containerd",
    "runc": "runc",
    "ip": "iproute2",
    "iptables": "iptables",
    "conntrack": "conntrack",
    "unshare": "util-linux",
    "nsenter": "util-linux",
    "buildah": "buildah",
    "mmdebstrap": "mmdebstrap",
}
"""Command → the Debian package that has it."""

_LOCK = "\0penstock-test-node"  # an abstract socket: it goes with its holder, and leaves no file
_LINK = "penstock-test"
_CGROUPS = Path("/sys/fs/cgroup")
_CPU_WEIGHTS = {"cpu.shares": "16384", "cpu.weight": "1600"}  # of cgroups version 1 and 2; one process has 1,024 and 100
_STOP_S = 10.0
_SHOWN_LOG = 2_000


class NoNode(Exception):
    """A node cannot be had here; the message says why and what would help."""


def missing() -> str:
    """What keeps this machine from being a node; empty: nothing."""
    if os.uname().sysname != "Linux" or os.geteuid() != 0:
        return "a real node needs Linux and root"
    packages = {package for command, package in COMMANDS.items() if shutil.which(command, path=_path()) is None}
    if node_files.cni_folder() is None:
        packages.add("containernetworking-plugins")
    return f"a real node needs programs that are not here; on Debian: apt-get install -y {' '.join(sorted(packages))}" if packages else ""


class RealNode:
    """A control plane with one node; `start` and `close`, or a context manager."""

    def __init__(self, binaries: Programs) -> None:
        """Take the machine: what a killed run has left is removed here. Raises NoNode where there can be no node, or is one already."""
        why = missing()
        if why:
            raise NoNode(why)
        self._lock = socket.socket(socket.AF_UNIX)
        try:
            self._lock.bind(_LOCK)
        except OSError:
            self._lock.close()
            raise NoNode("another test run has a node on this machine, and there can be one; wait for it") from None
        _remove_leftovers()
        FOLDER.mkdir(mode=0o700, parents=True)
        self._binaries = binaries
        self._children: dict[str, Child] = {}
        users = {"system:kube-proxy": "", f"system:node:{NODE}": "system:nodes"}
        self.plane = ControlPlane(binaries, address=LINK_HOST, users=users, parent=FOLDER)

    def __enter__(self) -> "RealNode":
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def start(self) -> None:
        """Bring it all up and wait until the node is Ready: 5 s of work. Raises ChildFailed, AssertionError or TimeoutError."""
        self._hold_namespaces()
        self._link()
        self.plane.start()
        self.plane.stop_component(KWOK)  # nobody plays here
        self._write_files()
        self._run("coredns", self._program("coredns"), "-conf", str(FOLDER / "Corefile"))
        self._run("containerd", "containerd", "--config", str(FOLDER / "containerd.toml"))
        wait_until("containerd", lambda: self._alive("containerd") and self.inside("ctr", "-a", self._socket, "version", check=False))
        archive = FOLDER / "pause.tar"
        archive.write_bytes(node_files.pause_archive(self._binaries.path("pause")))
        self.load(archive)
        self._start_kubelet()
        self._run("kube-proxy", self._program("kube-proxy"), f"--config={FOLDER / 'kube-proxy.yaml'}")
        wait_until(f"node {NODE}", lambda: self._alive("kubelet") and self._ready())

    def close(self) -> None:
        """End every process and remove every trace. Closing twice does nothing."""
        self.plane.close()
        for child in reversed(list(self._children.values())):  # the holder goes last, and takes all that is left with it
            child.stop(0.0)
        self._children.clear()
        if self._lock.fileno() >= 0:
            _remove_leftovers()
        self._lock.close()

    def load(self, archive: Path) -> None:
        """Make the images of a docker or OCI archive known to the node; there is no registry."""
        self.inside("ctr", "-a", self._socket, "-n", NAMESPACE, "images", "import", str(archive))

    def kill(self, container_id: str) -> None:
        """`kill -9` of a container's first process; `container_id` as Pods report it."""
        _, _, name = container_id.partition("://")
        self.inside("ctr", "-a", self._socket, "-n", NAMESPACE, "tasks", "kill", "-s", "SIGKILL", name)

    def inside(self, *command: str, check: bool = True) -> str:
        """What a command prints that runs in the node's namespaces. Raises AssertionError with it when it fails; without `check`, empty."""
        done = subprocess.run(
            [*self._enter(all_of_them=True), *command],
            capture_output=True,
            text=True,
            env=_environ(),
            timeout=PATIENCE_S,
            check=False,
        )
        if check and done.returncode != 0:
            raise AssertionError(f"{' '.join(command)}: exit status {done.returncode}: {done.stdout}{done.stderr}")
        return done.stdout if done.returncode == 0 else ""

    def tag(self, image: str, other: str) -> None:
        """Give an image another name."""
        self.inside("ctr", "-a", self._socket, "-n", NAMESPACE, "images", "tag", image, other)

    def logs(self) -> str:
        """The end of what each container has said; those of deleted Pods are gone."""
        found = sorted((FOLDER / "logs").glob("*/*/*.log"))
        return "\n".join(f"== {path.relative_to(FOLDER / 'logs')}\n{path.read_text(errors='replace')[-_SHOWN_LOG:]}" for path in found)

    # -- parts

    @property
    def _socket(self) -> str:
        return str(node_files.socket_of(FOLDER))

    def _program(self, name: str) -> str:
        return str(self._binaries.path(name))

    def _hold_namespaces(self) -> None:
        """A process that does nothing but be the first in its namespaces."""
        words = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sleep", "infinity"]
        self._children["namespaces"] = Child("namespaces", words, FOLDER / "namespaces.log", _environ())
        wait_until("namespaces", lambda: self._alive("namespaces") and self._holder() is not None)

    def _holder(self) -> int | None:
        """The first process inside, once it is `sleep`."""
        parent = self._children["namespaces"].pid
        text = Path(f"/proc/{parent}/task/{parent}/children").read_text(encoding="ascii").split()
        if not text or Path(f"/proc/{text[0]}/comm").read_text(encoding="utf-8").strip() != "sleep":
            return None
        return int(text[0])

    def _enter(self, *, all_of_them: bool) -> list[str]:
        words = ["nsenter", f"--target={self._holder()}", "--net", "--mount", "--wd=/"]
        return [*words, "--pid", "--"] if all_of_them else [*words, "--"]

    def _link(self) -> None:
        """The bridge inside; a link to it from outside, and routes over the link."""
        _ip("link", "add", _LINK, "type", "veth", "peer", "name", "eth0", "netns", str(self._holder()))
        _ip("addr", "add", f"{LINK_HOST}/{LINK_BITS}", "dev", _LINK)
        _ip("link", "set", _LINK, "up")
        for words in (
            ("link", "set", "lo", "up"),
            ("addr", "add", f"{LINK_NODE}/{LINK_BITS}", "dev", "eth0"),
            ("link", "set", "eth0", "up"),
            ("link", "add", BRIDGE, "type", "bridge"),
            ("addr", "add", f"{GATEWAY}/24", "dev", BRIDGE),
            ("link", "set", BRIDGE, "up"),
            ("route", "add", "default", "via", LINK_HOST),
        ):
            self.inside("ip", *words)
        self.inside("sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward")
        for destination in (POD_RANGE, SERVICE_RANGE):
            _ip("route", "add", destination, "via", LINK_NODE)

    def _write_files(self) -> None:
        kubeconfigs = {"kube-proxy": self.plane.kubeconfig_of("system:kube-proxy"), "coredns": self.plane.kubeconfig}
        cni = node_files.cni_folder()
        assert cni is not None
        for name, text in node_files.files(FOLDER, kubeconfigs, cni).items():
            (FOLDER / name).write_text(text, encoding="utf-8")

    def _start_kubelet(self) -> None:
        for root in _cgroup_roots():
            (root / CGROUP).mkdir(exist_ok=True)
            for name, weight in _CPU_WEIGHTS.items():  # else all pods together get as much as any one process outside
                if (root / CGROUP / name).exists():
                    (root / CGROUP / name).write_text(weight, encoding="ascii")
        self._run(
            "kubelet",
            self._program("kubelet"),
            f"--config={FOLDER / 'kubelet.yaml'}",
            f"--kubeconfig={self.plane.kubeconfig_of(f'system:node:{NODE}')}",
            f"--root-dir={FOLDER / 'kubelet'}",
            f"--cert-dir={FOLDER / 'kubelet-certificate'}",
            f"--hostname-override={NODE}",
            f"--node-ip={LINK_NODE}",
        )

    def _run(self, name: str, *command: str) -> None:
        self._children[name] = Child(name, [*self._enter(all_of_them=True), *command], FOLDER / f"{name}.log", _environ())

    def _alive(self, name: str) -> bool:
        if self._children[name].ended() is not None:
            raise self._children[name].failure()
        return True

    def _ready(self) -> bool:
        answer = self.plane.client.get(f"/api/v1/nodes/{NODE}")
        if not answer.is_success:
            return False
        node = answer.json()
        ready = any(one["type"] == "Ready" and one["status"] == "True" for one in node["status"].get("conditions", ()))
        return ready and not node["spec"].get("taints")


def _path() -> str:
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin:/usr/bin:/bin"


def _environ() -> dict[str, str]:
    return {"PATH": _path(), "HOME": str(FOLDER), "LC_ALL": "C"}


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, env=_environ(), timeout=60, check=False)
    if done.returncode != 0:
        raise AssertionError(f"ip {' '.join(words)}: {done.stderr.strip()}")


def _cgroup_roots() -> list[Path]:
    """One hierarchy (version 2), or one a controller (version 1)."""
    if (_CGROUPS / "cgroup.controllers").exists():
        return [_CGROUPS]
    return [folder for folder in _CGROUPS.iterdir() if (folder / "cgroup.procs").exists() and not folder.is_symlink()]


def _remove_leftovers() -> None:
    """Folder, cgroups and link of a node whose processes are gone or are about to be."""
    subprocess.run(["ip", "link", "del", _LINK], capture_output=True, env=_environ(), timeout=60, check=False)
    for root in _cgroup_roots():
        for folder in [*sorted((root / CGROUP).rglob("*/"), key=lambda path: -len(path.parts)), root / CGROUP]:
            _remove_cgroup(folder)
    shutil.rmtree(FOLDER, ignore_errors=True)


def _remove_cgroup(folder: Path) -> None:
    """Once the kernel has taken its last process out of it."""
    deadline_s = time.monotonic() + _STOP_S
    while folder.exists():
        try:
            folder.rmdir()
        except OSError:
            if time.monotonic() > deadline_s:
                raise
            time.sleep(0.02)
