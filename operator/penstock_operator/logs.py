"""JSON logs of an operator process: one object a line; what was written and why, nothing for a reconcile that wrote nothing.

`serve_operator` calls `configure` once. Numbers of an event go into `extra={"facts": {...}}`; secrets never do.
"""

import logging
import sys
import time
from typing import TextIO

import msgspec


class JsonFormatter(logging.Formatter):
    """`{"time", "level", "logger", "message", …facts}`; time in UTC with milliseconds."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}.{int(record.msecs):03d}Z",
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


def configure(level: str, stream: TextIO | None = None) -> None:
    """Send Penstock's own loggers as JSON to `stream` (default: standard error), other libraries' warnings too."""
    handler = logging.StreamHandler(stream if stream is not None else sys.stderr)
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("penstock").setLevel(level.upper())
    logging.getLogger("kopf").setLevel(logging.WARNING)
