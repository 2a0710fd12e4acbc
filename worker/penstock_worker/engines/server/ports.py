"""Free TCP ports for an engine that we start. Another process may take one before it does; its start then fails and is tried again."""

import contextlib
import socket


def free_ports(host: str, count: int) -> list[int]:
    """`count` different ports that are free on `host` now. Raises OSError for an address that is not ours."""
    with contextlib.ExitStack() as stack:
        taken = []
        for _ in range(count):
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            bound = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
            bound.bind((host, 0))
            taken.append(int(bound.getsockname()[1]))
    return taken
