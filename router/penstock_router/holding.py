"""Requests of a model that has no replica just now and gets one when asked for: they wait here, bounded in number and in time.

The director calls `until_served` with an admitted Call. The client of a stream hears comments meanwhile, so that nothing on the way
takes the connection for dead; from then on a failure can only be an event of the stream. Who wakes the model is not known here: the
autoscaler sees those who wait in the router's figures.
"""

import asyncio
from contextlib import suppress

from penstock_core.errors import Outcome

from penstock_router.call import Call, Ended
from penstock_router.config import RouterConfig

_COMMENT = b": waiting for a first replica\n\n"
_RETRY_S = 10
_LEAVING_S = 1.0
"""A worker that drains refuses a moment before the registry says so."""


class Holding:
    """Holds requests; one a router. State: each model's `held`, changed here alone."""

    def __init__(self, config: RouterConfig) -> None:
        self._config = config

    async def until_served(self, call: Call) -> None:
        """Return when an endpoint can take the request. Raises Ended where too many wait or none has come in time."""
        config, served, stream = self._config, call.served, call.chat.stream
        if served.held >= config.held_requests_per_model:
            said = f"{served.held} requests wait for a first replica of {served.name}; allowed: {config.held_requests_per_model}"
            raise Ended(Outcome.QUEUE_FULL, said, retry_after_s=_RETRY_S)
        clock = asyncio.get_running_loop().time
        began_s = clock()
        most_s = min(config.hold_s if stream else config.hold_whole_s, call.deadline_s - began_s)
        served.held += 1
        try:
            while not served.serving:
                left_s = began_s + most_s - clock()
                if left_s <= 0.0:
                    said = f"it waited {clock() - began_s:.1f} s for a first replica of {served.name}; allowed: {most_s:g} s"
                    raise Ended(Outcome.QUEUE_TIMEOUT, said, retry_after_s=_RETRY_S)
                with suppress(TimeoutError):
                    async with asyncio.timeout(min(left_s, config.hold_comment_s)):
                        await served.came.wait()
                if stream and not served.serving:
                    _comment(call)
        finally:
            served.held -= 1
        call.held_s = clock() - call.received_s


async def fell_asleep(call: Call, ended: Ended) -> bool:
    """Whether the request failed because the last replica was leaving, so that it may wait for the next one as if it had come later."""
    served = call.served
    if not served.wakeable or call.begun or ended.outcome not in (Outcome.NO_ENDPOINT, Outcome.UPSTREAM_FAILED):
        return False
    if any(one.record.role.decodes and one.id not in call.excluded for one in served.live):
        return False  # there are others, and they do not leave
    clock = asyncio.get_running_loop().time
    until_s = clock() + _LEAVING_S
    while served.serving and clock() < until_s:  # noqa: ASYNC110 -- nobody tells of a model that has lost its last endpoint
        await asyncio.sleep(0.02)
    return not served.serving


def _comment(call: Call) -> None:
    exchange = call.exchange
    if not exchange.started:
        headers = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-cache"), (b"x-request-id", call.request_id)]
        exchange.start(200, headers)
    exchange.write(_COMMENT)
