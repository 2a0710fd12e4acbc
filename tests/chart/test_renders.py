"""What the chart renders to: the committed files, lint, and what holds for every Pod of every installation."""

import base64
import json
import re
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from chart_renders import CHART, INSTALL, RENDERS, ROOT, VALUES, Render, helm, rendered
from go_programs import Programs
from penstock_autoscaler.config import AutoscalerConfig
from penstock_autoscaler.rights import RULES as AUTOSCALER_RULES
from penstock_core import metric_names
from penstock_core.errors import Outcome
from penstock_operator.config import OperatorConfig
from penstock_operator.rights import LEASE_RULES, RULES, own_secret_rule
from penstock_process.settings import to_settings
from penstock_router.config import RouterConfig
from penstock_router.keys import parse_keys

Object = dict[str, Any]


def objects(path: Path) -> list[Object]:
    """What a committed render holds."""
    return [one for one in yaml.safe_load_all(path.read_text(encoding="utf-8")) if one]


def same(one: list[Object], other: list[Object]) -> bool:
    """Whether two lists hold the same rules, in whatever order."""
    first, second = (sorted(json.dumps(rule, sort_keys=True) for rule in rules) for rules in (one, other))
    return first == second


def accounts(found: list[Object]) -> list[str]:
    """Names of the ServiceAccounts."""
    return [one["metadata"]["name"] for one in found if one["kind"] == "ServiceAccount"]


def named(found: list[Object], kind: str, name: str) -> Object:
    return next(one for one in found if one["kind"] == kind and one["metadata"]["name"] == name)


def pod_specs(found: list[Object]) -> list[Object]:
    return [one["spec"]["template"]["spec"] for one in found if one["kind"] == "Deployment"]


@pytest.mark.parametrize("render", RENDERS, ids=lambda render: str(render.path.relative_to(ROOT)))
def test_committed_files_are_what_the_chart_renders(go_programs: Programs, render: Render) -> None:
    """A change of the chart shows what it changes for users; `make golden` writes it down."""
    assert rendered(go_programs, render) == render.path.read_text(encoding="utf-8"), "run `make golden`"


@pytest.mark.parametrize("words", [(), ("--values", str(VALUES / "production.yaml"))], ids=["default", "production"])
def test_lint_has_nothing_to_say(go_programs: Programs, words: tuple[str, ...]) -> None:
    """Helm's own rules, warnings counted as errors."""
    done = helm(go_programs, "lint", "--strict", "--quiet", str(CHART), *words)
    assert (done.returncode, done.stdout.strip()) == (0, "")


def test_a_second_render_is_the_same(go_programs: Programs) -> None:
    """No chance in templates: what GitOps tools render again must not differ, and no secret is made there."""
    assert rendered(go_programs, RENDERS[0]) == rendered(go_programs, RENDERS[0])


def test_a_render_without_the_prometheus_operator_has_none_of_its_kinds() -> None:
    """An object of a kind that the cluster does not know would fail the whole installation."""
    kinds = {one["kind"] for one in objects(RENDERS[1].path)}
    assert not kinds & {"ServiceMonitor", "PodMonitor", "PrometheusRule"}
    assert {one["kind"] for one in objects(RENDERS[3].path)} >= {"ServiceMonitor", "PodMonitor", "PrometheusRule"}


@pytest.mark.parametrize("render", RENDERS, ids=lambda render: render.path.stem)
def test_rights_are_those_that_the_operator_names(render: Render) -> None:
    """The list in the code, no wildcard, and a Role instead of a ClusterRole where one namespace is looked after."""
    found = objects(render.path)
    operator = next(name for name in accounts(found) if name.endswith("-operator"))
    roles = {one["metadata"]["name"]: one for one in found if one["kind"] in ("Role", "ClusterRole")}
    wide = next(roles[name] for name in roles if name.endswith(operator))
    assert wide["kind"] == ("Role" if render.path.stem == "namespaced" else "ClusterRole")
    assert same(wide["rules"], [*RULES])
    own = [] if render.path.stem == "production" else [own_secret_rule("penstock-secrets")]
    assert same(roles[f"{operator}-own"]["rules"], [*LEASE_RULES, *own])
    assert "*" not in str([role["rules"] for role in roles.values()])


@pytest.mark.parametrize("render", RENDERS, ids=lambda render: render.path.stem)
def test_rights_are_those_that_the_autoscaler_names(render: Render) -> None:
    """One role, of a namespace where one is looked after, and none for Leases or Secrets."""
    found = objects(render.path)
    autoscaler = next(name for name in accounts(found) if name.endswith("-autoscaler"))
    (role,) = [one for one in found if one["kind"] in ("Role", "ClusterRole") and one["metadata"]["name"].endswith(autoscaler)]
    assert role["kind"] == ("Role" if render.path.stem == "namespaced" else "ClusterRole")
    assert same(role["rules"], [*AUTOSCALER_RULES])
    (binding,) = [one for one in found if one["kind"] == f"{role['kind']}Binding" and one["roleRef"]["name"] == role["metadata"]["name"]]
    assert [one["name"] for one in binding["subjects"]] == [autoscaler]


@pytest.mark.parametrize("render", RENDERS, ids=lambda render: render.path.stem)
def test_settings_are_ones_that_the_processes_take(render: Render) -> None:
    """A setting renamed in the code must not survive in the chart; API keys are in the form that the router reads."""
    found = objects(render.path)
    maps = {one["metadata"]["name"].rpartition("-")[2]: one for one in found if one["kind"] == "ConfigMap"}
    router = yaml.safe_load(maps["router"]["data"]["router.yaml"])
    to_settings(router | ({"redis_url": "redis://redis"} if router.get("models") else {}), RouterConfig, "router")
    to_settings(yaml.safe_load(maps["operator"]["data"]["operator.yaml"]), OperatorConfig, "operator")
    to_settings(yaml.safe_load(maps["autoscaler"]["data"]["autoscaler.yaml"]), AutoscalerConfig, "autoscaler")
    for one in found:
        if one["kind"] == "Secret" and "keys.yaml" in one.get("data", {}):
            assert parse_keys(base64.b64decode(one["data"]["keys.yaml"]))["sk-example"].tenant == "search"


def test_a_router_has_time_to_finish_its_streams() -> None:
    """SIGKILL comes later than the drain can take."""
    for render in RENDERS:
        found = objects(render.path)
        router = next(one for one in found if one["kind"] == "Deployment" and one["metadata"]["name"].endswith("-router"))
        settings = yaml.safe_load(named(found, "ConfigMap", router["metadata"]["name"])["data"]["router.yaml"])
        grace_s = router["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
        assert grace_s > settings["drain_s"] + settings["unready_s"]
        assert router["spec"]["replicas"] >= 2
        assert router["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0


def test_only_operator_and_autoscaler_get_a_token() -> None:
    """Routers and Redis have nothing to say to the API server; and the autoscaler nothing to workers, so it has no fleet token."""
    specs = {spec["containers"][0]["name"]: spec for spec in pod_specs(objects(INSTALL))}
    assert {name for name, spec in specs.items() if "serviceAccountName" in spec} == {"operator", "autoscaler"}
    assert {name for name, spec in specs.items() if spec.get("automountServiceAccountToken") is False} == {"router", "redis"}
    assert {one["name"] for one in specs["autoscaler"]["containers"][0]["env"]} == {"REDIS_PASSWORD", "PENSTOCK_REDIS_URL"}


def test_the_chart_has_the_version_of_the_code() -> None:
    """By default it installs the image of this very version."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert (chart["version"], chart["appVersion"]) == (version, version)


def test_definitions_stay_when_a_release_goes() -> None:
    """With a definition would go every object of its kind."""
    definitions = [one for one in objects(INSTALL) if one["kind"] == "CustomResourceDefinition"]
    assert len(definitions) == 2
    assert {one["metadata"]["annotations"]["helm.sh/resource-policy"] for one in definitions} == {"keep"}


def test_alerts_and_dashboards_name_metrics_that_exist() -> None:
    """Of metrics, and of outcomes: a renamed one would never alert again."""
    exported = {metric.name for metric in metric_names.ALL}
    texts = [path.read_text() for path in (CHART / "alerts.yaml", *sorted((CHART / "dashboards").glob("*.json")))]
    assert len(texts) > 1
    for text in texts:
        used = {re.sub("_(bucket|sum|count)$", "", name) for name in re.findall(r"\bpenstock_[a-z_]+", text)}
        assert used
        assert used - exported == set()
        outcomes = {word for group in re.findall(r'outcome[=!]~?\\?"([a-z_|]+)', text) for word in group.split("|")}
        assert outcomes - {outcome.value for outcome in Outcome} == set()


def test_a_packed_chart_holds_everything(go_programs: Programs, tmp_path: Path) -> None:
    """What is pushed to a chart registry installs as the folder does."""
    shutil.copytree(CHART, tmp_path / "penstock")
    assert helm(go_programs, "package", str(tmp_path / "penstock"), "--destination", str(tmp_path)).returncode == 0
    (archive,) = tmp_path.glob("*.tgz")
    packed = helm(go_programs, "template", "penstock", str(archive), "--namespace", "penstock-system")
    assert packed.stdout == INSTALL.read_text(encoding="utf-8").removeprefix(RENDERS[0].head)
