"""The `penstock` command: one function a command, each a few lines that call the module of the same name.

Imports happen inside the commands: `penstock --help` stays quick, and a router never loads what only `up` needs (Ray).
Errors meant for people (PenstockError, settings that cannot be used) end with status 1 and their message, without a traceback.
"""

import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from penstock_core.errors import PenstockError
from penstock_router.policy_names import ALLOWED
from typer.core import TyperGroup

from penstock_cli.looking import Data, doctor, explain, status
from penstock_cli.machine_code import use_shipped
from penstock_cli.plan import plan
from penstock_cli.said import WITH_AUTOSCALER, refuse_said, with_value
from penstock_cli.simulate import MOST_MS, simulate


class _Commands(TyperGroup):
    """Says of a refused value which one it was: the option parser's own message leaves it out."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except typer.BadParameter as error:
            error.message = with_value(error)
            raise


app = typer.Typer(
    cls=_Commands,
    help="Serve large language models with separate prefill and decode pools.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",  # the other mode takes the square brackets of a help text for markup and drops them
)


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        sys.stdout.write(f"penstock {version('penstock')}\n")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")] = False,
) -> None:
    """Serve large language models with separate prefill and decode pools."""


class EngineName(StrEnum):
    """What the workers run."""

    SIM = "sim"
    VLLM = "vllm"
    SGLANG = "sglang"


class Host(StrEnum):
    """What hosts the workers."""

    AUTO = "auto"
    RAY = "ray"
    PROCESS = "process"


@app.command()
def up(
    context: typer.Context,
    prefill: Annotated[
        int | None, typer.Option(min=0, max=64, help="Prefill workers. [default: 1; with --autoscale its least, but 1]")
    ] = None,
    decode: Annotated[
        int | None, typer.Option(min=0, max=64, help="Decode workers. [default: 2; with --autoscale its least, but 1]")
    ] = None,
    both: Annotated[
        int | None, typer.Option(min=0, max=64, help="Undivided workers. [default: 0; with --autoscale its least, but 1]")
    ] = None,
    autoscale: Annotated[
        str,
        typer.Option(help="Size pools by their traffic, within these bounds: both=1..4, or prefill=1..2,decode=1..4. [default: nothing]"),
    ] = "",
    slo_ttft_ms: Annotated[
        float | None, typer.Option(min=1, max=MOST_MS, help="Target: to the first token, queueing included. [default: 2000]")
    ] = None,
    slo_itl_ms: Annotated[
        float | None, typer.Option(min=0.1, max=MOST_MS, help="Target: a token after the first, on average. [default: 50]")
    ] = None,
    slo_share: Annotated[
        float,
        typer.Option(min=0.01, max=0.999, help="Share of requests that should meet both targets.", rich_help_panel=WITH_AUTOSCALER),
    ] = 0.95,
    autoscale_set: Annotated[
        list[str] | None,
        typer.Option(
            help="name=value of the autoscaler: period_s, stable_s and others (docs/configuration.md). Repeatable.",
            rich_help_panel=WITH_AUTOSCALER,
        ),
    ] = None,
    autoscaler_port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port of the autoscaler's metrics; 0: any free one.", rich_help_panel=WITH_AUTOSCALER)
    ] = 0,
    engine: Annotated[
        EngineName, typer.Option(help="sim needs no GPU and no model; vllm and sglang an environment of theirs.")
    ] = EngineName.SIM,
    model: Annotated[str, typer.Option(help="Name that clients put in `model`; with a real engine the model's folder.")] = "sim",
    served_model_name: Annotated[str, typer.Option(help="Real engine: name that clients put in `model`. [default: the folder's]")] = "",
    engine_python: Annotated[str, typer.Option(help="Real engine: interpreter of the environment that has it. [default: python3]")] = "",
    engine_arg: Annotated[
        list[str] | None, typer.Option(help="Real engine: a further word for it; may be repeated (--engine-arg=--dtype).")
    ] = None,
    engine_env: Annotated[list[str] | None, typer.Option(help="Real engine: NAME=value for its environment; may be repeated.")] = None,
    profile: Annotated[
        str, typer.Option(help="Timing: sim runs by it, for a real engine it is where learning begins.")
    ] = "polynomial-reference",
    speed: Annotated[float, typer.Option(min=0.01, max=1000, help="Times faster than the profile says.")] = 1.0,
    host: Annotated[Host, typer.Option(help="What hosts the workers; auto: Ray where it is installed.")] = Host.AUTO,
    redis: Annotated[
        str, typer.Option(envvar="PENSTOCK_REDIS_URL", help="Redis of your own, redis://host:port/db. [default: start one]")
    ] = "",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the router; 0: any free one.")] = 8000,
    policy: Annotated[str, typer.Option(help=f"Placement policy: {ALLOWED}.")] = "target-misses",
    api_keys: Annotated[Path | None, typer.Option(help="File of API keys; none: no authentication.")] = None,
    data: Data = None,
) -> None:
    """Start Redis, workers and a router on this machine, and stay until Ctrl-C."""
    from penstock_cli.data_folder import chosen
    from penstock_cli.scaled_pools import parse_bounds, parse_scaling
    from penstock_cli.settings import parse_environment, parse_settings
    from penstock_cli.up import run_up
    from penstock_cli.up_plan import UpPlan, replicas_of, slo_of

    bounds = parse_bounds(autoscale)
    if not bounds:
        refuse_said(context, WITH_AUTOSCALER, "without the autoscaler", "--autoscale")
    plan = UpPlan(
        bounds=bounds,
        scaling=parse_scaling(parse_settings(autoscale_set or ())),
        autoscaler_port=autoscaler_port,
        slo=slo_of(slo_ttft_ms, slo_itl_ms),
        attainment_ratio=slo_share,
        engine=engine.value,
        served_name=served_model_name,
        engine_python=engine_python,
        engine_args=tuple(engine_arg or ()),
        engine_env=parse_environment(engine_env or ()),
        **replicas_of(prefill, decode, both, bounds),
        model=model,
        profile=profile,
        speed=speed,
        host=host.value,
        redis_url=redis,
        port=port,
        policy=policy,
        api_keys=str(api_keys.resolve()) if api_keys else "",
    )
    raise typer.Exit(run_up(plan, chosen(data)))


app.command()(status)
app.command()(explain)
app.command()(doctor)


@app.command()
def router(
    config: Annotated[Path | None, typer.Option(help="YAML or JSON file of settings (docs/configuration.md).")] = None,
    endpoint: Annotated[
        list[str] | None,
        typer.Option(help="Server given by hand: its URL, and without spaces ,role=decode ,model=NAME ,connector=nixl. Repeatable."),
    ] = None,
    redis: Annotated[str | None, typer.Option(envvar="PENSTOCK_REDIS_URL", help="Redis of the registry.")] = None,
    model: Annotated[list[str] | None, typer.Option(help="Served model to follow in the registry. Repeatable. [default: all]")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on. [default: 127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="0: any free one. [default: 8000]")] = None,
    policy: Annotated[str | None, typer.Option(help=f"Placement policy: {ALLOWED}. [default: target-misses]")] = None,
    api_keys: Annotated[str | None, typer.Option(help="File of API keys; none: no authentication.")] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error. [default: info]")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Any other setting, as name=value. Repeatable.")] = None,
    url_file: Annotated[Path | None, typer.Option(help="Write the router's URL here once it listens.")] = None,
) -> None:
    """Run a router of its own.

    Secrets come from PENSTOCK_CHUNK_SECRET, PENSTOCK_FLEET_TOKEN and PENSTOCK_ADMIN_KEY, or from the files that the same names with
    _FILE name.
    """
    from penstock_cli.router_command import run_from_settings

    settings: dict[str, Any] = {
        "redis_url": redis,
        "host": host,
        "port": port,
        "policy": policy,
        "api_keys": api_keys,
        "log_level": log_level,
    }
    raise typer.Exit(run_from_settings(config, settings, endpoint or [], model or [], set_ or [], url_file))


@app.command()
def worker(
    config: Annotated[Path | None, typer.Option(help="JSON file of settings.")] = None,
    worker_id: Annotated[str | None, typer.Option("--id", help="Stable name of this replica. [default: worker-0]")] = None,
    role: Annotated[str | None, typer.Option(help="prefill, decode or both. [default: both]")] = None,
    model: Annotated[str | None, typer.Option(help="Name that clients put in `model`. [default: sim]")] = None,
    profile: Annotated[str | None, typer.Option(help="Timing of the sim engine.")] = None,
    speed: Annotated[float | None, typer.Option(help="Times faster than the profile says.")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on. [default: 127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="0: any free one. [default: 0]")] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error. [default: info]")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Any other setting, as name=value. Repeatable.")] = None,
) -> None:
    """Run one worker of its own.

    PENSTOCK_REDIS_URL names the registry; without it routers are given the worker's URL by hand. Secrets come from
    PENSTOCK_CHUNK_SECRET and PENSTOCK_FLEET_TOKEN, or from the files that the same names with _FILE name.
    """
    from penstock_cli.worker_command import run_from_settings

    settings: dict[str, Any] = {"id": worker_id, "role": role, "model": model, "profile": profile, "speed": speed}
    settings |= {"host": host, "port": port, "log_level": log_level}
    run_from_settings(config, settings, set_ or [])


@app.command()
def operator(
    config: Annotated[Path | None, typer.Option(help="JSON file of settings.")] = None,
    kubeconfig: Annotated[str | None, typer.Option(help="[default: the Pod's service account, else $KUBECONFIG]")] = None,
    namespace: Annotated[str | None, typer.Option(help="Where the operator's Lease is. [default: penstock-system]")] = None,
    watch_namespace: Annotated[str | None, typer.Option(help="The one namespace to look after. [default: all]")] = None,
    image: Annotated[str | None, typer.Option(help="Image of workers whose ModelService names none.")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Probes and metrics; 0: any free one. [default: 8080]")] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error. [default: info]")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Any other setting, as name=value. Repeatable.")] = None,
) -> None:
    """Run the Kubernetes operator.

    What workers are given comes from PENSTOCK_FLEET_TOKEN, PENSTOCK_CHUNK_SECRET and PENSTOCK_REDIS_URL, or from the files that the
    same names with _FILE name.
    """
    from penstock_cli.operator_command import run_from_settings

    settings: dict[str, Any] = {"kubeconfig": kubeconfig, "namespace": namespace, "watch_namespace": watch_namespace}
    settings |= {"image": image, "port": port, "log_level": log_level}
    raise typer.Exit(run_from_settings(config, settings, set_ or []))


@app.command()
def autoscaler(
    config: Annotated[Path | None, typer.Option(help="YAML or JSON file of settings (docs/configuration.md).")] = None,
    kubeconfig: Annotated[str | None, typer.Option(help="[default: the Pod's service account, else $KUBECONFIG]")] = None,
    watch_namespace: Annotated[str | None, typer.Option(help="The one namespace to look after. [default: all]")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Probes and metrics; 0: any free one. [default: 8080]")] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error. [default: info]")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Any other setting, as name=value. Repeatable.")] = None,
) -> None:
    """Size the pools of a Kubernetes cluster's ModelServices that name bounds.

    Traffic is read from the Redis that PENSTOCK_REDIS_URL names (or the file that PENSTOCK_REDIS_URL_FILE names). Several may run: one
    at a time acts on a model. For one machine: penstock up --autoscale.
    """
    from penstock_cli.autoscaler_command import run_from_settings

    settings: dict[str, Any] = {"kubeconfig": kubeconfig, "watch_namespace": watch_namespace, "port": port, "log_level": log_level}
    raise typer.Exit(run_from_settings(config, settings, set_ or []))


@app.command()
def fill_secret(
    name: Annotated[str, typer.Argument(help="Name of the Secret.")],
    namespace: Annotated[str, typer.Option(help="Where it is.")] = "penstock-system",
    kubeconfig: Annotated[str, typer.Option(help="[default: the Pod's service account, else $KUBECONFIG]")] = "",
) -> None:
    """Fill what an installation's Secret lacks (fleet-token, chunk-secret, admin-key, redis-password) with random values."""
    from penstock_cli.operator_command import fill_secret

    fill_secret(kubeconfig, namespace, name)


app.command()(simulate)
app.command()(plan)


def main() -> None:
    """Entry point of `penstock`."""
    use_shipped(os.environ)
    try:
        app()
    except (PenstockError, ValueError) as error:
        sys.stderr.write(f"penstock: {error}\n")
        sys.exit(1)


if __name__ == "__main__":
    main()
