"""Progress lines of `penstock up`: what is being done, how long it took, and a sign of life for anything over two seconds.

On a terminal the sign of life is a spinner; in a log it is a line every few seconds. It knows nothing of what is started.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from rich.console import Console
from rich.markup import escape

Result = TypeVar("Result")

QUIET_S = 2.0
"""A step may be silent this long."""
_LOG_EVERY_S = 5.0


class Stopped(Exception):
    """Somebody asked to stop while a step was under way."""


class Steps:
    """Runs awaitables one after another and tells of each; `stop` ends the one under way."""

    def __init__(self, console: Console, stop: asyncio.Event) -> None:
        self.console = console
        self.stop = stop

    async def run(self, name: str, doing: Awaitable[Result], told: Callable[[Result], str] = lambda _: "") -> Result:
        """Await `doing` and print `name`, what `told` says of its result, and the seconds. Raises Stopped on `stop`."""
        began = time.monotonic()
        task: asyncio.Future[Any] = asyncio.ensure_future(doing)
        stopping: asyncio.Future[Any] = asyncio.ensure_future(self.stop.wait())
        try:
            if self.console.is_terminal:
                with self.console.status(f"{escape(name)} …"):
                    await asyncio.wait((task, stopping), return_when=asyncio.FIRST_COMPLETED)
            else:
                await self._wait_with_lines(name, (task, stopping), began)
            if not task.done():
                raise Stopped(name)
            result: Result = await task
        finally:
            stopping.cancel()
            if not task.done():
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        said = told(result)
        self.console.print(f"[green]✓[/] {escape(name)}{'  ' + escape(said) if said else ''}  [dim]{time.monotonic() - began:.1f} s[/]")
        return result

    async def _wait_with_lines(self, name: str, either: "tuple[asyncio.Future[Any], ...]", began: float) -> None:
        pause_s = QUIET_S
        while True:
            done, _ = await asyncio.wait(either, timeout=pause_s, return_when=asyncio.FIRST_COMPLETED)
            if done:
                return
            self.console.print(f"… {escape(name)}, {time.monotonic() - began:.0f} s so far")
            pause_s = _LOG_EVERY_S
