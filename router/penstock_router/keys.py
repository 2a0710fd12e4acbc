"""Who is calling: API keys from a file, each with its tenant, weight, priority cap and isolation; and the admin key.

The director asks `tenant_of` with the `Authorization` header; a task calls `reload_if_changed` about once a second. The
presented key is turned into a keyed digest (the key of the digest is random per process) and looked up by that, then
compared with `hmac.compare_digest`: how long it takes says nothing about any key in the file, however many there are.
"""

import hashlib
import hmac
import os
from pathlib import Path
from typing import Any

import msgspec

ANONYMOUS_TENANT = "anonymous"
LOWEST_PRIORITY, HIGHEST_PRIORITY = -100, 100
_SCHEME = b"bearer "
_MOST_QUOTA = 10**12
_MOST_FILE_BYTES = 16 * 1024 * 1024


class KeyFileError(ValueError):
    """The key file cannot be used; the message names the field, the value and what is allowed, never a key."""


class Tenant(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a key stands for."""

    tenant: str
    weight: float = 1.0
    """Share among tenants; more than 0."""
    priority_cap: int = 0
    """Highest priority this tenant's requests may ask for, -100..100."""
    isolation: bool = False
    """True: this tenant shares no cached prefix with others."""
    most_requests: int = 0
    """Requests under way at once; 0: no bound of its own."""
    tokens_per_minute: int = 0
    """Of prompts and answers; 0: no bound."""

    def __post_init__(self) -> None:
        if not self.tenant:
            raise ValueError("tenant is ''; allowed: a name")
        if not 0.0 < self.weight <= 1e6:
            raise ValueError(f"weight is {self.weight!r}; allowed: more than 0, at most 1000000")
        if not LOWEST_PRIORITY <= self.priority_cap <= HIGHEST_PRIORITY:
            raise ValueError(f"priority_cap is {self.priority_cap!r}; allowed: {LOWEST_PRIORITY}..{HIGHEST_PRIORITY}")
        for name in ("most_requests", "tokens_per_minute"):
            if not 0 <= getattr(self, name) <= _MOST_QUOTA:
                raise ValueError(f"{name} is {getattr(self, name)!r}; allowed: 0..{_MOST_QUOTA}")


ANONYMOUS = Tenant(ANONYMOUS_TENANT, priority_cap=HIGHEST_PRIORITY)
"""Everybody, where no key file is given."""


def tenant_salt(tenant: Tenant, secret: int) -> bytes:
    """What an isolated tenant's prompts are salted with (32 hex digits, as sent in `x-penstock-salt`); b"" without isolation."""
    if not tenant.isolation:
        return b""
    key = secret.to_bytes(8, "little")
    return hashlib.blake2b(tenant.tenant.encode(), key=key, digest_size=16, person=b"penstock-salt").hexdigest().encode()


def parse_keys(text: bytes) -> dict[str, Tenant]:
    """Key → tenant from YAML or JSON: `sk-…: {tenant: …, weight: …, priority_cap: …, isolation: …}`. Raises KeyFileError."""
    try:
        return msgspec.yaml.decode(text, type=dict[str, Tenant])
    except msgspec.ValidationError as error:
        raise KeyFileError(f"API keys: {error}; allowed: a mapping of key to {', '.join(Tenant.__struct_fields__)}") from None
    except (msgspec.DecodeError, ValueError):
        # The parser's own message quotes the text around the fault, which may be a key.
        raise KeyFileError("API keys: the file is neither YAML nor JSON") from None


class KeyRing:
    """The keys in force. State: the digests and the stamp of the file they came from; changed only by `reload_if_changed`."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._digest_key = os.urandom(32)
        self._tenants: dict[bytes, tuple[bytes, Tenant]] = {}
        self._stamp: tuple[int, int, int] | None = None
        if path is not None:
            self.reload_if_changed()

    @property
    def required(self) -> bool:
        """Whether a key is asked for; without a file nobody needs one."""
        return self._path is not None

    def __len__(self) -> int:
        return len(self._tenants)

    def tenant_of(self, authorization: bytes | None) -> Tenant | None:
        """The tenant behind an `Authorization: Bearer …` value; ANONYMOUS without a key file; None for no or a wrong key."""
        if self._path is None:
            return ANONYMOUS
        if authorization is None or authorization[:7].lower() != _SCHEME:
            return None
        digest = self._digest(authorization[7:].strip())
        expected, tenant = self._tenants.get(digest, (_NO_DIGEST, None))
        return tenant if hmac.compare_digest(digest, expected) else None

    def reload_if_changed(self) -> bool:
        """Read the file again if it is another one than before. Raises KeyFileError and keeps the old keys if it is bad."""
        if self._path is None:
            return False
        stamp = _NO_FILE
        try:
            found = self._path.stat()
            stamp = (found.st_mtime_ns, found.st_size, found.st_ino)
            if stamp == self._stamp:
                return False
            self._stamp = stamp  # a bad file is complained about once, not every second
            if found.st_size > _MOST_FILE_BYTES:
                raise KeyFileError(f"API keys: the file has {found.st_size} bytes; allowed: at most {_MOST_FILE_BYTES}")
            keys = parse_keys(self._path.read_bytes())
        except OSError as error:
            if stamp == self._stamp == _NO_FILE:
                return False
            self._stamp = stamp
            raise KeyFileError(f"API keys: cannot read {self._path}: {error.strerror}") from None
        digests = ((self._digest(key.encode()), tenant) for key, tenant in keys.items())
        self._tenants = {digest: (digest, tenant) for digest, tenant in digests}
        return True

    def _digest(self, key: bytes) -> bytes:
        return hashlib.blake2b(key, key=self._digest_key, digest_size=32).digest()


_NO_DIGEST = bytes(32)
_NO_FILE = (0, 0, 0)
"""Stamp of a file that is not there."""


def same_key(presented: bytes | None, expected: str) -> bool:
    """Whether an `Authorization: Bearer …` value carries `expected`, in constant time; for the admin key."""
    if presented is None or presented[:7].lower() != _SCHEME:
        return False
    return hmac.compare_digest(presented[7:].strip(), expected.encode())


def priority_of(written: bytes | None, tenant: Tenant) -> int:
    """The request's priority: what `x-penstock-priority` asks for, at most the tenant's cap. Raises ValueError out of range."""
    if written is None:
        return min(0, tenant.priority_cap)
    try:
        asked: Any = int(written)
    except ValueError:
        asked = None
    if asked is None or not LOWEST_PRIORITY <= asked <= HIGHEST_PRIORITY:
        raise ValueError(
            f"x-penstock-priority is {written.decode('latin-1')!r}; allowed: a whole number {LOWEST_PRIORITY}..{HIGHEST_PRIORITY}"
        )
    return min(int(asked), tenant.priority_cap)
