"""The commands that only look: `status`, `explain` and `doctor`, on this machine or into a cluster.

`main` registers them. `where` says which of the two is meant; `status`, `explain`, `doctor` and their `cluster_…` counterparts find
out and lay out, and here it is printed. Imports happen inside the commands, as in `main`.
"""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from penstock_core.errors import PenstockError

_FILE_WIDTH = 180
"""Columns of a table that goes to no terminal."""

SCALING = "scaling"
"""Asks `explain` for the autoscaler's decisions instead of a request's."""

_PANEL = "In a cluster"

Data = Annotated[Path | None, typer.Option("--data", help="Data folder: secrets and logs. [default: $PENSTOCK_DATA or .penstock/data]")]
Json = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
Url = Annotated[str | None, typer.Option("--url", help="Router to ask. [default: the one of the data folder]")]
InCluster = Annotated[
    bool,
    typer.Option(
        "--cluster", help="Look into a cluster, though a `penstock up` runs here. Any option below means it too.", rich_help_panel=_PANEL
    ),
]
Kubeconfig = Annotated[Path | None, typer.Option(help="[default: $KUBECONFIG or ~/.kube/config]", rich_help_panel=_PANEL)]
Context = Annotated[str | None, typer.Option(help="Context of the kubeconfig. [default: its current one]", rich_help_panel=_PANEL)]
Namespace = Annotated[
    str | None,
    typer.Option("--namespace", "-n", help="Where Penstock's routers run. [default: wherever they are found]", rich_help_panel=_PANEL),
]


def status(
    data: Data = None,
    url: Url = None,
    as_json: Json = False,
    cluster: InCluster = False,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
    namespace: Namespace = None,
) -> None:
    """Show the endpoints: role, load, KV use, lease; in a cluster the ModelServices, too.

    A `penstock up` that runs here is looked at, else the cluster of the kubeconfig.
    """
    from penstock_cli.data_folder import chosen
    from penstock_cli.where import cluster_meant

    folder = chosen(data)
    local = url is not None or data is not None
    meant = cluster_meant(folder, local=local, cluster=cluster, kubeconfig=kubeconfig, context=context, namespace=namespace)
    if meant is not None:
        from penstock_cli import cluster_status

        found, shown = cluster_status.status(meant)
    else:
        from penstock_cli.status import local_status

        found, shown = local_status(folder, url)
    _show(found, as_json, shown)


def explain(
    request_id: Annotated[
        str | None, typer.Argument(metavar="[REQUEST_ID|scaling]", help="x-request-id of an answer; none: the last ones.")
    ] = None,
    last: Annotated[int, typer.Option(min=1, max=1000, help="How many decisions to list.")] = 10,
    data: Data = None,
    url: Url = None,
    as_json: Json = False,
    cluster: InCluster = False,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
    namespace: Namespace = None,
) -> None:
    """Show why requests went where they went; in a cluster all routers are asked. With `scaling`: why pools were sized as they were.

    A `penstock up` that runs here is looked at, else the cluster of the kubeconfig.
    """
    from penstock_cli.data_folder import chosen
    from penstock_cli.where import cluster_meant

    folder = chosen(data)
    local = url is not None or data is not None
    meant = cluster_meant(folder, local=local, cluster=cluster, kubeconfig=kubeconfig, context=context, namespace=namespace)
    if meant is not None and request_id == SCALING:
        from penstock_cli.explain_scaling import cluster_scaling

        found, shown = cluster_scaling(meant, last)
    elif meant is not None:
        from penstock_cli import cluster_status

        found, shown = cluster_status.explain(meant, request_id, last)
    elif request_id == SCALING:
        from penstock_cli.explain_scaling import local_scaling

        found, shown = local_scaling(folder, url, last)
    else:
        from penstock_cli.explain import local_explain

        found, shown = local_explain(folder, url, request_id, last)
    _show(found, as_json, shown)


def doctor(
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port the router would take.")] = 8000,
    data: Data = None,
    as_json: Json = False,
    cluster: InCluster = False,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
    namespace: Namespace = None,
) -> None:
    """Say what is missing and what to do about it: on this machine, or with --cluster in a cluster.

    Ends with status 1 if something is missing, with 0 if there is only advice.
    """
    import msgspec
    from rich.table import Table

    from penstock_cli.doctor import ADVICE, MISSING, OK

    if cluster or kubeconfig or context or namespace:
        from penstock_cli import cluster_doctor
        from penstock_cli.cluster import open_cluster
        from penstock_cli.kube_access import Aim

        if data is not None:
            raise PenstockError("--data is given with a cluster's option; allowed: one or the other")
        findings = cluster_doctor.examine(open_cluster(Aim(kubeconfig, context, namespace)))
    else:
        from penstock_cli import doctor as machine
        from penstock_cli.data_folder import chosen

        findings = machine.examine(chosen(data), port)
    table = Table()
    for heading in ("check", "", "found", "what to do"):
        table.add_column(heading, overflow="fold")
    colour = {OK: "green", ADVICE: "yellow", MISSING: "red"}
    for finding in findings:
        table.add_row(finding.name, finding.state, finding.found, finding.todo, style="" if finding.state == OK else colour[finding.state])
    _show({"findings": msgspec.to_builtins(findings)}, as_json, [table])
    raise typer.Exit(any(finding.state == MISSING for finding in findings))


def _show(found: dict[str, Any], as_json: bool, shown: list[Any]) -> None:
    """Print what was found: as JSON for scripts, else as tables in which nothing is taken for markup."""
    if as_json:
        import msgspec

        sys.stdout.write(msgspec.json.format(msgspec.json.encode(found), indent=2).decode() + "\n")
        return
    from rich.console import Console

    console = Console(markup=False, highlight=False, width=None if sys.stdout.isatty() else _FILE_WIDTH)
    for table in shown:
        console.print(table)
