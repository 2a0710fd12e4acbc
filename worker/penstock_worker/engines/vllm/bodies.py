"""What the adapter must know of a request's body, and the one thing that it adds to it: the tenant's cache salt. Pure.

Everything else travels as the client or the router wrote it, unknown fields included.
"""

import msgspec


class _Params(msgspec.Struct):
    do_remote_prefill: bool = False
    do_remote_decode: bool = False


class Wish(msgspec.Struct):
    """The part of a body that changes how its answer is treated."""

    kv_transfer_params: _Params | None = None

    @property
    def pulls(self) -> bool:
        """The KV of its prompt is to be fetched from a prefill worker."""
        return self.kv_transfer_params is not None and self.kv_transfer_params.do_remote_prefill

    @property
    def hands_over(self) -> bool:
        """Its KV is to be kept for a decode worker."""
        return self.kv_transfer_params is not None and self.kv_transfer_params.do_remote_decode


_decode_wish = msgspec.json.Decoder(Wish).decode
_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def read_wish(body: bytes) -> Wish:
    """An empty wish for a body that is wrong: vLLM will say what is wrong with it."""
    try:
        return _decode_wish(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return Wish()


def with_salt(body: bytes, salt: str) -> bytes:
    """The body with `salt` in front of the client's own `cache_salt`. Raises msgspec.DecodeError for a body that is no object."""
    fields = _decode_fields(body)
    own = fields.get("cache_salt")
    theirs = msgspec.json.decode(own) if own is not None else None
    written = f"{salt}/{theirs}" if isinstance(theirs, str) and theirs else salt
    return msgspec.json.encode({**fields, "cache_salt": written})
