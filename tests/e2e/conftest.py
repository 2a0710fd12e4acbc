"""The stack of stack.py as a fixture."""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from stack import Stack


@pytest.fixture
def start_stack(tmp_path: Path) -> Callable[..., Any]:
    """`async with start_stack(prefill=1, decode=2, router={...}, worker={...}) as stack`: the stack, gone afterwards."""

    @asynccontextmanager
    async def start(
        *, router: Mapping[str, object] | None = None, worker: Mapping[str, object] | None = None, **pools: int
    ) -> AsyncIterator[Stack]:
        async with Stack(tmp_path, pools, router or {}, worker or {}) as stack:
            yield stack

    return start
