"""The bounds of a server and of a client: every buffer, count and wait of the data plane has its number here.

Made once by the process that assembles the server or client; frozen. Knows nothing of who uses them.
"""

from dataclasses import dataclass, fields

KIB = 1024
MIB = 1024 * 1024


def _require_positive(limits: object) -> None:
    for field in fields(limits):  # type: ignore[arg-type]
        value = getattr(limits, field.name)
        if not value > 0:
            raise ValueError(f"{type(limits).__name__}.{field.name} is {value!r}; it must be greater than 0")


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """Bounds of a server. Sizes in bytes, waits in seconds.

    `body_timeout_s` is for the whole body, so a client that sends a byte a second is answered 408. `write_stall_timeout_s` is how
    long a client may leave `write_high_water_bytes` unread. `linger_timeout_s` is how long a refused client is listened to (and
    ignored) so that it can read the refusal before the connection closes. At `max_connections` the connection that has been without a
    request longest makes room for a newcomer, if that is at least `spare_idle_s`; else the newcomer is refused.
    """

    header_bytes: int = 32 * KIB
    body_bytes: int = 16 * MIB
    header_timeout_s: float = 10.0
    body_timeout_s: float = 30.0
    idle_timeout_s: float = 75.0
    write_high_water_bytes: int = 256 * KIB
    write_stall_timeout_s: float = 60.0
    linger_timeout_s: float = 2.0
    pipeline_bytes: int = 64 * KIB
    max_connections: int = 16_384
    spare_idle_s: float = 1.0

    def __post_init__(self) -> None:
        _require_positive(self)

    @property
    def sweep_interval_s(self) -> float:
        """How often connections are looked over: an eighth of the shortest wait, between 10 ms and 1 s."""
        shortest = min(self.header_timeout_s, self.body_timeout_s, self.idle_timeout_s, self.write_stall_timeout_s, self.linger_timeout_s)
        return min(1.0, max(0.01, shortest / 8))


@dataclass(frozen=True, slots=True)
class ClientLimits:
    """Bounds of a client. Sizes in bytes, waits in seconds. `body_bytes` is the default limit of `Response.read`."""

    connect_timeout_s: float = 2.0
    max_connections_per_origin: int = 1024
    idle_timeout_s: float = 30.0
    header_bytes: int = 64 * KIB
    body_bytes: int = 64 * MIB
    read_high_water_bytes: int = 256 * KIB

    def __post_init__(self) -> None:
        _require_positive(self)
