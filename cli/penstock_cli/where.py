"""Whether `status`, `explain` and `doctor` look at this machine or at a cluster.

What was asked for on the command line wins, then a `penstock up` that runs here, then the cluster of a kubeconfig; that nobody named
the last is said on stderr, since it may be somebody's production.
"""

import sys
from pathlib import Path

from penstock_cli.cluster import Cluster, open_cluster
from penstock_cli.data_folder import DataFolder
from penstock_cli.kube_access import Aim, configured


class BothNamed(ValueError):
    """The command line names a router or folder of this machine, and a cluster."""


def cluster_meant(
    folder: DataFolder, *, local: bool, cluster: bool, kubeconfig: Path | None, context: str | None, namespace: str | None
) -> Cluster | None:
    """The cluster to look at; None: this machine. `local`: --url or --data was given. Raises BothNamed, NoCluster."""
    aim = Aim(kubeconfig, context, namespace)
    named = cluster or aim != Aim()
    if named and local:
        raise BothNamed("--url or --data is given with a cluster's option; allowed: one or the other")
    if named:
        return open_cluster(aim)
    if local or folder.running() is not None or not configured():
        return None
    sys.stderr.write("No `penstock up` runs here: looking into the kubeconfig's cluster.\n")
    return open_cluster(aim)
