"""A TCP line in front of a server that a test can cut and mend: what passes it is lost on both sides, as when a network fails.

`test_hits` puts one between a worker and its engine's KV events. It knows nothing of what is said over it.
"""

import asyncio
import contextlib
from types import TracebackType

_PIECE_BYTES = 1 << 16


class CutLine:
    """An async context manager. While it is cut, connections are closed as soon as they are made."""

    def __init__(self, to_port: int) -> None:
        """`to_port`: the server's, on loopback."""
        self.port = 0
        self.made = 0
        """Connections that were joined to the server, so far."""
        self._to_port = to_port
        self._cut = False
        self._server: asyncio.Server | None = None
        self._ends: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> "CutLine":
        self._server = await asyncio.start_server(self._join, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()

    def cut(self) -> None:
        """Everything under way is lost, and nobody gets through until `mend`."""
        self._cut = True
        for end in self._ends:
            end.transport.abort()

    def mend(self) -> None:
        self._cut = False

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._cut:
            writer.transport.abort()
            return
        onward, back = None, None
        with contextlib.suppress(OSError):
            onward, back = await asyncio.open_connection("127.0.0.1", self._to_port)
        if onward is None or back is None:
            writer.transport.abort()
            return
        self.made += 1
        self._ends |= {writer, back}
        try:
            await asyncio.gather(_pass_on(reader, back), _pass_on(onward, writer))
        finally:
            self._ends -= {writer, back}


async def _pass_on(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await source.read(_PIECE_BYTES):
            sink.write(data)
            await sink.drain()
    sink.close()
