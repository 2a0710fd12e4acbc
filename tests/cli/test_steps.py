"""Progress lines: every step tells its end, a slow one gives signs of life, a stop ends the one under way."""

import asyncio
import io

import pytest
from penstock_cli import steps
from penstock_cli.steps import Steps, Stopped
from rich.console import Console


def made() -> tuple[Steps, io.StringIO, asyncio.Event]:
    out, stop = io.StringIO(), asyncio.Event()
    return Steps(Console(file=out, highlight=False, width=120), stop), out, stop


def test_a_finished_step_tells_its_result_and_time() -> None:
    """Name, what there is to say, seconds; square brackets in names are text, not markup."""

    async def run() -> str:
        made_steps, out, _ = made()
        assert await made_steps.run("Redis [7]", asyncio.sleep(0, 42), lambda found: f"found {found}") == 42
        return out.getvalue()

    assert asyncio.run(run()).startswith("✓ Redis [7]  found 42  0.0 s")


def test_a_slow_step_gives_signs_of_life(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a log, where no spinner turns, a line appears after the quiet time."""
    monkeypatch.setattr(steps, "QUIET_S", 0.01)

    async def run() -> None:
        made_steps, out, _ = made()
        go_on = asyncio.Event()
        step = asyncio.create_task(made_steps.run("Ray", go_on.wait()))
        for _ in range(3000):
            if "… Ray, 0 s so far" in out.getvalue():
                break
            await asyncio.sleep(0.01)
        else:
            raise AssertionError(out.getvalue())
        go_on.set()
        await step

    asyncio.run(run())


def test_stop_cancels_the_step_under_way() -> None:
    """The awaitable is cancelled and has ended when Stopped arrives."""

    async def run() -> None:
        made_steps, _, stop = made()
        ended = asyncio.Event()

        async def forever() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()

        asyncio.get_running_loop().call_soon(stop.set)
        with pytest.raises(Stopped, match="Ray"):
            await made_steps.run("Ray", forever())
        assert ended.is_set()

    asyncio.run(run())


def test_an_error_of_the_step_is_the_callers() -> None:
    """No line says that it succeeded."""

    async def fails() -> None:
        raise LookupError("no Ray")

    async def run() -> str:
        made_steps, out, _ = made()
        with pytest.raises(LookupError, match="no Ray"):
            await made_steps.run("Ray", fails())
        return out.getvalue()

    assert "✓" not in asyncio.run(run())
