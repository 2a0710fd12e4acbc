"""The latency targets of ModelServices, told to routers through Redis: they are no part of a Pod, so a change of them rolls nothing.

`leading` runs `keep` while it leads. Routers read what is written here (kvindex `models`) and take it for requests that name no targets.
"""

import asyncio
import logging
from collections.abc import Iterable, Mapping
from contextlib import suppress

from penstock_core import api_parts
from penstock_core.errors import IndexUnavailable
from penstock_core.slo import Slo
from penstock_kvindex.models import ServedModels
from pydantic import ValidationError

from penstock_operator.cache import Cache, Raw
from penstock_operator.kinds import MODEL_SERVICE

log = logging.getLogger(__name__)

_TOGETHER_S = 0.5
"""Changes are gathered this long: a status written is an event of a ModelService too."""


def targets_of(services: Iterable[Raw]) -> dict[str, Slo]:
    """By served model; where several ModelServices serve one model, the oldest says. One that cannot be read says nothing."""
    found: dict[str, Slo] = {}
    for service in sorted(services, key=_age):
        spec = service.get("spec") or {}
        try:
            asked = api_parts.Slo.model_validate(spec.get("slo") or {})
            found.setdefault(spec["model"]["name"], Slo(asked.ttft_milliseconds / 1_000, asked.itl_milliseconds / 1_000))
        except (ValidationError, KeyError, TypeError):
            continue  # its status says so
    return found


def _age(service: Raw) -> tuple[str, str, str]:
    metadata = service["metadata"]
    return metadata.get("creationTimestamp", ""), metadata["namespace"], metadata["name"]


class Targets:
    """See the module. State: what Redis was last seen to hold. `changed` is set when a ModelService may have changed."""

    def __init__(self, cache: Cache, models: ServedModels, changed: asyncio.Event) -> None:
        self._cache = cache
        self._models = models
        self._changed = changed
        self._told: Mapping[str, Slo] | None = None

    async def keep(self, every_s: float) -> None:
        """After each change, and where Redis has lost it (looked at every `every_s`), write what differs, until cancelled."""
        loop = asyncio.get_running_loop()
        look_at_s = loop.time()
        while True:
            self._changed.clear()
            wanted = targets_of(filter(None, (self._cache.get(MODEL_SERVICE, *key) for key in self._cache.services())))
            rest_s = _TOGETHER_S
            if wanted != self._told or loop.time() >= look_at_s:
                look_at_s = loop.time() + every_s
                rest_s = _TOGETHER_S if await self._write(wanted) else every_s
            await asyncio.sleep(rest_s)
            with suppress(TimeoutError):
                async with asyncio.timeout_at(look_at_s):
                    await self._changed.wait()

    async def _write(self, wanted: Mapping[str, Slo]) -> bool:
        try:
            written = await self._models.set_targets(wanted)
        except IndexUnavailable as error:
            log.warning("targets cannot be written", extra={"facts": {"error": str(error)}})
            return False
        self._told = wanted
        if written:
            log.info("targets written", extra={"facts": {"models": written}})
        return True
