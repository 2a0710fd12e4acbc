"""The HTTP session that Kopf watches through: listings and events are taken out of it, and Kopf is left with the versions.

Kopf hands its handlers single events and tells nobody where a listing begins or ends, so an object deleted while a watch was down
would never be missed; and each event costs it a task, three copies and a logger. Here each page of a listing and each event goes to
the operator; Kopf sees empty pages and, for each chunk of events, one bookmark with its last version, from which it resumes. When to
watch again, and from where, stays its business; but of errors in a stream it survives "410 Gone" alone, by listing anew, so every other
one, and every line that is no event, is made one of these. `handlers` makes the sessions.
"""

import logging
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, NamedTuple

import aiohttp
import msgspec

log = logging.getLogger(__name__)

_GONE = b'{"type":"ERROR","object":{"kind":"Status","code":410,"reason":"Expired","message":"the watch failed"}}\n'
Event = tuple[str, dict[str, Any]]
"""ADDED, MODIFIED or DELETED, and the object. All callbacks are called in Kopf's thread, with the path of the collection."""


class Listeners(NamedTuple):
    """Who is told."""

    listed: Callable[[str, list[dict[str, Any]], int, bool, bool], None]
    """Items of a page, version of the listing, whether it is the first and the last page."""
    changed: Callable[[str, list[Event]], None]
    """Events, in their order."""
    heard: Callable[[str], None]
    """The stream said something, if only a bookmark."""


class _Line(msgspec.Struct):
    """One line of a stream."""

    type: str
    object: dict[str, Any]


_decode = msgspec.json.Decoder(_Line).decode


def taken(lines: bytes) -> tuple[list[Event], bytes]:
    """The events in whole lines of a stream, and what is left for Kopf: a bookmark for events, bookmarks, `_GONE` for all that fails."""
    events: list[Event] = []
    left = []
    for line in lines.splitlines():
        if not line:
            continue
        try:
            said = _decode(line)
        except msgspec.DecodeError as error:
            said = _Line("ERROR", {"message": f"no event: {error}"})
        if said.type in ("ADDED", "MODIFIED", "DELETED"):
            events.append((said.type, said.object))
        elif said.type == "ERROR":
            log.warning("a watch failed; everything is listed anew", extra={"facts": {"said": str(said.object)[:500]}})
            left.append(_GONE)
            break
        else:
            left.append(line + b"\n")
    if events:
        last = events[-1][1]["metadata"]["resourceVersion"]
        left.insert(0, msgspec.json.encode({"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": last}}}) + b"\n")
    return events, b"".join(left)


class _Stream:
    """A watch's content without its events."""

    def __init__(self, content: aiohttp.StreamReader, path: str, listeners: Listeners) -> None:
        self._content = content
        self._path = path
        self._listeners = listeners

    def __getattr__(self, name: str) -> Any:
        return getattr(self._content, name)

    async def iter_chunked(self, size: int) -> AsyncIterator[bytes]:
        part = b""
        async for chunk in self._content.iter_chunked(size):
            self._listeners.heard(self._path)
            whole, newline, part = (part + chunk).rpartition(b"\n")
            if not newline:
                continue
            events, left = taken(whole)
            if events:
                self._listeners.changed(self._path, events)
            if left:
                yield left
            if left.endswith(_GONE):
                return


def response_class(paths: Mapping[str, str], listeners: Listeners) -> type[aiohttp.ClientResponse]:
    """The class of a session's responses. `paths`: collections to listen to, by URL path; the values are what the callbacks are given."""

    class Response(aiohttp.ClientResponse):
        async def start(self, connection: Any) -> aiohttp.ClientResponse:
            await super().start(connection)
            path = paths.get(self.url.path)
            if path is not None and self.status == 200 and "watch" in self.url.query:
                listeners.heard(path)
                self.content = _Stream(self.content, path, listeners)  # type: ignore[assignment]
            return self

        async def read(self) -> bytes:
            fresh = self._body is None
            body = await super().read()
            path = paths.get(self.url.path)
            if not fresh or path is None or self.status != 200 or self.method != "GET" or "watch" in self.url.query:
                return body
            page = msgspec.json.decode(body)
            last = not page["metadata"].get("continue")
            listeners.listed(path, page["items"], int(page["metadata"]["resourceVersion"]), "continue" not in self.url.query, last)
            listeners.heard(path)
            self._body = msgspec.json.encode({**page, "items": []})
            return self._body

    return Response
