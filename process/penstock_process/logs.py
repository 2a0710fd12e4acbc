"""JSON logs: one object a line on standard error, with the request id where there is one.

Each process calls `configure` once. Loggers are named after their modules; the numbers of an event go into
`extra={"facts": {...}}`. Nothing is logged per successful request at the default level, and secrets never are.
"""

import logging
import sys
import time
from typing import TextIO

import msgspec


class JsonFormatter(logging.Formatter):
    """`{"time", "level", "logger", "message", …facts}`; time in UTC with milliseconds."""

    def format(self, record: logging.LogRecord) -> str:
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, object] = {
            "time": f"{seconds}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        facts = getattr(record, "facts", None)
        if isinstance(facts, dict):
            line.update(facts)
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line, enc_hook=str).decode()


def _ours_or_grave(record: logging.LogRecord) -> bool:
    return record.name.startswith("penstock") or record.levelno >= logging.WARNING


def configure(level: str, stream: TextIO | None = None) -> None:
    """Send Penstock's own records from `level` on, and others' warnings, to `stream`; called again, it replaces what it set."""
    handler = logging.StreamHandler(stream if stream is not None else sys.stderr)
    handler.setFormatter(JsonFormatter())
    handler.addFilter(_ours_or_grave)
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level.upper())
