"""The HTTP session that Kopf watches through: it overhears whole listings and when a stream last said anything.

Kopf hands its handlers single events and tells nobody where a listing begins or ends, so an object deleted while a watch was down
would never be missed. Here each page of a listing is passed on, and taken out of what Kopf sees (it would keep a task and a copy
for each object); each chunk of a stream, bookmarks too, sets that stream's age back. `handlers` makes the sessions.
"""

from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import aiohttp
import msgspec

Listed = Callable[[str, list[dict[str, Any]], int, bool, bool], None]
"""Path of the collection, items of this page, version of the listing, whether it is the first and the last page. In Kopf's thread."""
Heard = Callable[[str], None]
"""Path of the collection whose stream said something. Called in Kopf's thread."""


class _Overheard:
    """A response's content that tells of each chunk."""

    def __init__(self, content: aiohttp.StreamReader, heard: Callable[[], None]) -> None:
        self._content = content
        self._heard = heard

    def __getattr__(self, name: str) -> Any:
        return getattr(self._content, name)

    async def iter_chunked(self, size: int) -> AsyncIterator[bytes]:
        async for chunk in self._content.iter_chunked(size):
            self._heard()
            yield chunk


def response_class(paths: Mapping[str, str], listed: Listed, heard: Heard) -> type[aiohttp.ClientResponse]:
    """The class of a session's responses. `paths`: collections to overhear, by URL path; the values are what the callbacks are given."""

    class Response(aiohttp.ClientResponse):
        async def start(self, connection: Any) -> aiohttp.ClientResponse:
            await super().start(connection)
            path = paths.get(self.url.path)
            if path is not None and self.status == 200 and "watch" in self.url.query:
                heard(path)
                self.content = _Overheard(self.content, lambda: heard(path))  # type: ignore[assignment]
            return self

        async def read(self) -> bytes:
            fresh = self._body is None
            body = await super().read()
            path = paths.get(self.url.path)
            if not fresh or path is None or self.status != 200 or self.method != "GET" or "watch" in self.url.query:
                return body
            page = msgspec.json.decode(body)
            last = not page["metadata"].get("continue")
            listed(path, page["items"], int(page["metadata"]["resourceVersion"]), "continue" not in self.url.query, last)
            heard(path)
            self._body = msgspec.json.encode({**page, "items": []})  # Kopf would keep a task and a copy for each, for nothing
            return self._body

    return Response
