"""Which cluster, as whom, and in which namespace: from a kubeconfig, or from the Pod this runs in.

The one module of the CLI that imports `kubernetes`, and only when a cluster is meant: it knows kubeconfigs, exec plugins and
tokens that must be renewed. The requests are `cluster`'s.
"""

import os
import ssl
from pathlib import Path
from typing import Any, NamedTuple

import httpx
from penstock_core.errors import PenstockError

_TIMEOUT_S = 15.0
_OWN_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_IN_POD = "KUBERNETES_SERVICE_HOST"


class NoCluster(PenstockError):
    """There is no way to a cluster; the message says where it was looked for and what to do."""


class Aim(NamedTuple):
    """What the command line says about the cluster; None where it says nothing."""

    kubeconfig: Path | None = None
    context: str | None = None
    namespace: str | None = None


class Access(NamedTuple):
    """A way to the API server. `client` says who we are with each request."""

    context: str
    server: str
    namespace: str
    """The context's own."""
    client: httpx.Client


def configured() -> bool:
    """Whether a kubeconfig is where it is looked for, or this runs in a Pod."""
    return _IN_POD in os.environ or any(path.exists() for path in _places())


def reach(aim: Aim) -> Access:
    """The chosen context's cluster; nothing has been asked of it yet. Raises NoCluster."""
    try:
        from kubernetes import config
        from kubernetes.client import Configuration
    except ImportError:
        raise NoCluster("the package `kubernetes` is not installed; install penstock[operator]") from None
    found = Configuration()
    name, namespace = "of this Pod", "default"
    try:
        if aim.kubeconfig is None and aim.context is None and _IN_POD in os.environ and not any(path.exists() for path in _places()):
            config.load_incluster_config(client_configuration=found)  # type: ignore[no-untyped-call]
            namespace = _OWN_NAMESPACE.read_text(encoding="utf-8").strip()
        else:
            file = _file(aim)
            contexts, active = config.list_kube_config_contexts(file)  # type: ignore[no-untyped-call]
            name = aim.context or (active or {}).get("name", "")
            named = {one["name"]: one["context"] for one in contexts}
            if name not in named:
                raise NoCluster(f"context is {name!r}; allowed: {', '.join(sorted(named)) or 'none, the kubeconfig has no context'}")
            namespace = named[name].get("namespace") or "default"
            config.load_kube_config(  # type: ignore[no-untyped-call]
                file, context=name, client_configuration=found, persist_config=False
            )
        return Access(name, found.host, namespace, _client(found))
    except (config.ConfigException, OSError) as error:  # a certificate that is not there or not one, too
        raise NoCluster(f"the kubeconfig cannot be used: {error}") from None


def _places() -> list[Path]:
    named = os.environ.get("KUBECONFIG", "")
    return [Path(part).expanduser() for part in named.split(os.pathsep) if part] or [Path("~/.kube/config").expanduser()]


def _file(aim: Aim) -> str:
    """The file, or several as $KUBECONFIG names them. Raises NoCluster where none is there."""
    places = [aim.kubeconfig] if aim.kubeconfig is not None else _places()
    there = [str(path) for path in places if path.exists()]
    if not there:
        raise NoCluster(f"no kubeconfig at {', '.join(map(str, places))}; name one with --kubeconfig or $KUBECONFIG")
    return os.pathsep.join(there)


def _client(found: Any) -> httpx.Client:
    context = ssl.create_default_context(cafile=found.ssl_ca_cert or None)
    if not found.verify_ssl:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if found.cert_file:
        context.load_cert_chain(found.cert_file, found.key_file)
    token = found.get_api_key_with_prefix("BearerToken")
    headers = {"authorization": token} if token else {}
    return httpx.Client(base_url=found.host, verify=context, headers=headers, timeout=_TIMEOUT_S, proxy=found.proxy or None)
