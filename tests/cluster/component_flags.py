"""The command-line flags of each component of a control plane, from its folder and ports. Pure; `control_plane` runs them."""

from pathlib import Path
from typing import NamedTuple

ETCD, API_SERVER, CONTROLLERS, SCHEDULER, KWOK = "etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kwok"

LOOPBACK = "127.0.0.1"
SERVICE_RANGE = "10.96.0.0/16"

_STAGES = Path(__file__).parent / "stages.yaml"
_AUDIT_POLICY = Path(__file__).parent / "audit-policy.yaml"
_UNBRAKED = {"kube-api-qps": 500, "kube-api-burst": 1_000}
"""The default of 20 requests a second would set the pace of every test with many objects."""


class Place(NamedTuple):
    """Where one control plane lives."""

    folder: Path
    api_port: int
    etcd_port: int
    peer_port: int
    address: str = LOOPBACK
    """Where the API server listens; everything else is on loopback."""

    @property
    def url(self) -> str:
        return f"https://{self.address}:{self.api_port}"

    @property
    def etcd_url(self) -> str:
        return f"http://127.0.0.1:{self.etcd_port}"

    @property
    def authority(self) -> Path:
        """The API server makes itself a certificate and an authority; both are in this file."""
        return self.folder / "certs" / "apiserver.crt"

    @property
    def key(self) -> Path:
        """The certificate's key; it signs the tokens of ServiceAccounts too."""
        return self.folder / "certs" / "apiserver.key"

    @property
    def tokens(self) -> Path:
        """Static users: token, name, number, group."""
        return self.folder / "tokens.csv"

    @property
    def audit_log(self) -> Path:
        """What the policy has written down, an event a line."""
        return self.folder / "audit.log"

    def kubeconfig(self, user: str) -> Path:
        return self.folder / f"{user.rpartition(':')[2]}.kubeconfig"


def flags_of(component: str, place: Place, *, with_controllers: bool) -> list[str]:
    """Words after the program's name."""
    made = {
        ETCD: _etcd,
        API_SERVER: _api_server,
        CONTROLLERS: _controllers,
        SCHEDULER: _scheduler,
        KWOK: _kwok,
    }[component](place)
    if component == API_SERVER and not with_controllers:
        made["disable-admission-plugins"] = "ServiceAccount"  # nobody would make the accounts it insists on
    return [f"--{name}={value}" for name, value in made.items()]


def _etcd(place: Place) -> dict[str, object]:
    peer = f"http://127.0.0.1:{place.peer_port}"
    return {
        "name": "only",
        "data-dir": place.folder / "etcd",
        "unsafe-no-fsync": "true",
        "log-level": "warn",
        "listen-client-urls": place.etcd_url,
        "advertise-client-urls": place.etcd_url,
        "listen-peer-urls": peer,
        "initial-advertise-peer-urls": peer,
        "initial-cluster": f"only={peer}",
    }


def _api_server(place: Place) -> dict[str, object]:
    return {
        "etcd-servers": place.etcd_url,
        "bind-address": place.address,
        "advertise-address": place.address,
        "secure-port": place.api_port,
        "cert-dir": place.key.parent,
        # a loopback address cannot be an endpoint of the Service `kubernetes`
        "endpoint-reconciler-type": "none" if place.address == LOOPBACK else "lease",
        "service-cluster-ip-range": SERVICE_RANGE,
        "token-auth-file": place.tokens,
        "service-account-issuer": "https://kubernetes.default.svc",
        "service-account-key-file": place.key,
        "service-account-signing-key-file": place.key,
        "authorization-mode": "Node,RBAC",
        "enable-admission-plugins": "OwnerReferencesPermissionEnforcement",  # as some distributions have it
        "audit-policy-file": _AUDIT_POLICY,
        "audit-log-path": place.audit_log,
        "profiling": "false",
    }


def _controllers(place: Place) -> dict[str, object]:
    return {
        **_UNBRAKED,
        "kubeconfig": place.kubeconfig(CONTROLLERS),
        "leader-elect": "false",
        "secure-port": 0,
        "use-service-account-credentials": "true",
        "service-account-private-key-file": place.key,
        "root-ca-file": place.authority,
        "horizontal-pod-autoscaler-sync-period": "2s",
    }


def _scheduler(place: Place) -> dict[str, object]:
    return {**_UNBRAKED, "kubeconfig": place.kubeconfig(SCHEDULER), "leader-elect": "false", "secure-port": 0}


def _kwok(place: Place) -> dict[str, object]:
    return {
        "kubeconfig": place.kubeconfig("admin"),
        "config": _STAGES,
        "manage-nodes-with-annotation-selector": "kwok.x-k8s.io/node=fake",
        "node-lease-duration-seconds": 40,
        "cidr": "10.200.0.0/16",
        "node-ip": "127.0.0.1",
    }
