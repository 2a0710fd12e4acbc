"""TCP ports on this machine: whether one can be listened on, and which process has it.

`up` asks before it starts anything, `doctor` reports.
"""

import socket
from pathlib import Path

from penstock_core.errors import PenstockError

_LISTEN_STATE = "0A"


class PortBusy(PenstockError):
    """Another process listens there; the message names the port, the process where it can be known, and the option."""


def require_free(host: str, port: int, option: str = "--port") -> None:
    """Raises PortBusy when `host:port` cannot be listened on; port 0 (any) is always free. `option`: what sets it."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            holder = _holder(port)
            raise PortBusy(
                f"port {port} on {host} cannot be used ({error.strerror}{f'; process {holder} has it' if holder else ''}); "
                f"choose another with {option}, or {option} 0 for any free one"
            ) from None


def _holder(port: int) -> str | None:
    """`pid name` of the process listening on `port`, where /proc and our rights tell; None otherwise."""
    inodes = {
        f"socket:[{fields[9]}]"
        for table in ("/proc/net/tcp", "/proc/net/tcp6")
        if Path(table).exists()
        for line in Path(table).read_text(encoding="ascii").splitlines()[1:]
        if (fields := line.split())[3] == _LISTEN_STATE and int(fields[1].rpartition(":")[2], 16) == port
    }
    for descriptor in Path("/proc").glob("[0-9]*/fd/*") if inodes else ():
        try:
            if str(descriptor.readlink()) in inodes:
                process = descriptor.parents[1]
                return f"{process.name} {(process / 'comm').read_text(encoding='utf-8', errors='replace').strip()}"
        except OSError:
            continue
    return None
