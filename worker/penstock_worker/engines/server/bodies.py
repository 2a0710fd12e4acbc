"""The one thing that a worker adds to a body: the tenant's cache salt. Pure.

Everything else travels as the client or the router wrote it, unknown fields included.
"""

import msgspec

_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def with_salt(body: bytes, salt: str) -> bytes:
    """The body with `salt` in front of the client's own `cache_salt`. Raises msgspec.DecodeError for a body that is no object."""
    fields = _decode_fields(body)
    own = fields.get("cache_salt")
    theirs = msgspec.json.decode(own) if own is not None else None
    written = f"{salt}/{theirs}" if isinstance(theirs, str) and theirs else salt
    return msgspec.json.encode({**fields, "cache_salt": written})
