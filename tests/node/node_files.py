"""The configuration of everything that makes a machine a node: containerd, its network, the kubelet, kube-proxy, CoreDNS; and the
image of the sandbox container. Pure but for reading the pause program; `real_node` writes and runs it.

It holds inside the node's own namespaces: of these addresses only LINK_HOST, and a route to POD_RANGE, exist outside.
"""

import hashlib
import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

NODE = "penstock-node"
BRIDGE = "penstock0"
POD_RANGE = "10.197.0.0/24"
GATEWAY = "10.197.0.1"
"""The bridge's address: CoreDNS answers there."""
LINK_HOST, LINK_NODE, LINK_BITS = "10.197.1.1", "10.197.1.2", 30
"""The two ends of the link between this machine and the node."""
CGROUP = "penstock-node"
PAUSE_IMAGE = "localhost/penstock-pause:1"
NAMESPACE = "k8s.io"
"""containerd's, where the kubelet looks for images."""

_CNI_FOLDERS = (Path("/usr/lib/cni"), Path("/opt/cni/bin"))


def cni_folder() -> Path | None:
    """Where the distribution puts the CNI plugins; None: they are not there."""
    return next((folder for folder in _CNI_FOLDERS if (folder / "bridge").is_file() and (folder / "host-local").is_file()), None)


def socket_of(folder: Path) -> Path:
    """containerd's."""
    return folder / "containerd.sock"


def files(folder: Path, kubeconfigs: Mapping[str, Path], cni: Path) -> dict[str, str]:
    """Text by name, to be written into `folder`. `kubeconfigs`: by component."""
    return {
        "10-penstock.conflist": json.dumps(_network(folder)),
        "containerd.toml": _containerd(folder, cni),
        "kubelet.yaml": yaml.safe_dump(_kubelet(folder)),
        "kube-proxy.yaml": yaml.safe_dump(_kube_proxy(kubeconfigs["kube-proxy"])),
        "Corefile": _corefile(kubeconfigs["coredns"]),
    }


def _network(folder: Path) -> dict[str, Any]:
    """No masquerading: this machine has a route to the pods, and they need nothing beyond it."""
    ranges = {
        "type": "host-local",
        "dataDir": str(folder / "addresses"),
        "ranges": [[{"subnet": POD_RANGE}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    bridge = {"type": "bridge", "bridge": BRIDGE, "isGateway": True, "hairpinMode": True, "ipam": ranges}
    return {"cniVersion": "1.0.0", "name": "penstock", "plugins": [bridge]}


def _containerd(folder: Path, cni: Path) -> str:
    unused = [f"io.containerd.snapshotter.v1.{name}" for name in ("aufs", "btrfs", "devmapper", "zfs")] + ["io.containerd.internal.v1.opt"]
    return f"""version = 2
root = "{folder / "containerd"}"
state = "{folder / "containerd-state"}"
disabled_plugins = {json.dumps(unused)}
[grpc]
address = "{socket_of(folder)}"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{PAUSE_IMAGE}"
netns_mounts_under_state_dir = true
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{cni}"
conf_dir = "{folder}"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
SystemdCgroup = false
"""


def _kubelet(folder: Path) -> dict[str, Any]:
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "containerRuntimeEndpoint": f"unix://{socket_of(folder)}",
        "address": LINK_NODE,
        "clusterDomain": "cluster.local",
        "clusterDNS": [GATEWAY],
        "podLogsDir": str(folder / "logs"),
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{CGROUP}",
        "enforceNodeAllocatable": [],
        "failCgroupV1": False,
        "failSwapOn": False,
        "makeIPTablesUtilChains": False,
        "oomScoreAdj": 0,
        "maxOpenFiles": 20_000,
        "serializeImagePulls": False,
        "registryPullQPS": 0,
        # the disk is the developer's: what else lies on it is no reason to evict a pod or to delete an image
        "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
    }


def _kube_proxy(kubeconfig: Path) -> dict[str, Any]:
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "iptables",
        "hostnameOverride": NODE,
        "bindAddress": LINK_NODE,
        "clusterCIDR": POD_RANGE,
        "iptables": {"masqueradeAll": True, "minSyncPeriod": "0s"},  # answers between pods of one bridge come back this way
        "conntrack": {"maxPerCore": 0, "min": 0},
        "clientConnection": {"kubeconfig": str(kubeconfig)},
    }


def _corefile(kubeconfig: Path) -> str:
    return f""". {{
    bind {GATEWAY}
    errors
    kubernetes cluster.local {{
        kubeconfig {kubeconfig}
        ttl 2
    }}
    cache 2
}}
"""


def pause_archive(program: Path) -> bytes:
    """An image of one program, in the form of `docker save`."""
    layer = _tar({"pause": program.read_bytes()}, mode=0o755)
    config = {
        "architecture": "amd64" if program_is_x86(program) else "arm64",
        "os": "linux",
        "config": {"Entrypoint": ["/pause"], "User": "65535:65535"},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
    }
    manifest = [{"Config": "config.json", "RepoTags": [PAUSE_IMAGE], "Layers": ["layer.tar"]}]
    return _tar(
        {"config.json": json.dumps(config).encode(), "manifest.json": json.dumps(manifest).encode(), "layer.tar": layer}, mode=0o644
    )


def program_is_x86(program: Path) -> bool:
    """By the ELF header's machine number (62 is x86-64)."""
    return program.read_bytes()[18:20] == (62).to_bytes(2, "little")


def _tar(contents: Mapping[str, bytes], mode: int) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        for name, content in contents.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), mode
            archive.addfile(entry, io.BytesIO(content))
    return made.getvalue()
