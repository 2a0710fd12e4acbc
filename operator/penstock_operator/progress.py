"""Whether a rollout gets on: the Progressing condition, with its deadline and pause.

`plan` asks once per plan. Progress is a replica that became ready; the clock starts when the condition turned True or when the newest
replica became ready, whichever is later. So nothing has to be counted in the status. Pure.
"""

from collections.abc import Mapping
from typing import Any

import msgspec
from penstock_core.api_parts import Rollout

from penstock_operator.conditions import PROGRESSING, Verdict, find
from penstock_operator.gangs import seconds_of
from penstock_operator.kinds import REVISION
from penstock_operator.observe import Observed
from penstock_operator.rollout import PoolView, rolling

EXCEEDED = "ProgressDeadlineExceeded"


class Progress(msgspec.Struct, frozen=True):
    """The verdict; whether the deadline is past; and when it will be (epoch seconds, None: not counting)."""

    verdict: Verdict
    exceeded: bool = False
    due: float | None = None


def judge(observed: Observed, limits: Rollout, views: Mapping[str, PoolView], now: float) -> Progress:
    """The state of the rollout or of the scaling under way."""
    missing = {name: view.desired - sum(gang.ready for gang in view.new) for name, view in views.items()}
    old = sum(len(view.old) for view in views.values())
    if not old and all(count <= 0 for count in missing.values()):
        return Progress(Verdict(PROGRESSING, False, "Complete", "every replica is of the newest generation and ready"))
    moves = rolling(tuple(views.values()))
    if limits.paused and moves:
        return Progress(Verdict(PROGRESSING, False, "Paused", "spec.rollout.paused is true: scaling and repair go on, nothing is replaced"))
    behind = ", ".join(f"{name} {views[name].desired - count}/{views[name].desired}" for name, count in missing.items())
    since = _last_progress(observed, views)
    due = since + limits.progress_deadline_seconds if since else now + limits.progress_deadline_seconds
    if _stuck(observed, views) or now >= due:
        trouble = next((pod.trouble for view in views.values() for gang in view.new for pod in gang.pods if pod.trouble), "")
        message = f"no replica became ready for {limits.progress_deadline_seconds} s (new generation ready: {behind}); "
        message += f"the old one goes on serving. {trouble}" if old else f"correct the spec or free resources. {trouble}"
        return Progress(Verdict(PROGRESSING, False, EXCEEDED, message.strip()), exceeded=moves)
    return Progress(Verdict(PROGRESSING, True, "RollingOut" if moves else "Scaling", f"new generation ready: {behind}"), due=due)


def _last_progress(observed: Observed, views: Mapping[str, PoolView]) -> float:
    """When the last replica became ready, the generation was first written, or work began; 0: it begins now."""
    condition = _condition(observed)
    began = seconds_of(condition.get("lastTransitionTime")) if condition.get("status") == "True" else 0.0
    return max(began, _newest_ready(views), _written(observed)) if began else 0.0


def _stuck(observed: Observed, views: Mapping[str, PoolView]) -> bool:
    """The deadline was exceeded for this very spec, and nothing has become ready since."""
    condition = _condition(observed)
    if condition.get("reason") != EXCEEDED or condition.get("observedGeneration") != observed.service["metadata"].get("generation"):
        return False
    return _newest_ready(views) <= seconds_of(condition.get("lastTransitionTime"))


def _condition(observed: Observed) -> Mapping[str, Any]:
    return find((observed.service.get("status") or {}).get("conditions") or (), PROGRESSING)


def _newest_ready(views: Mapping[str, PoolView]) -> float:
    return max((gang.ready_since for view in views.values() for gang in view.new), default=0.0)


def _written(observed: Observed) -> float:
    """When the newest revision was made."""
    made = (seconds_of(raw["metadata"].get("creationTimestamp")) for (kind, _), raw in observed.children.items() if kind is REVISION)
    return max(made, default=0.0)
