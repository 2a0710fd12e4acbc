"""JSON logs of a worker process: one object a line, nothing per successful request at the default level.

`serve_worker` and the Ray actor call `configure` once. Numbers of an event go into `extra={"facts": {...}}`; secrets never do.
"""

import logging
import sys
import time
from typing import TextIO

import msgspec

_OURS = ("penstock", "penstock_worker", "penstock_dataplane", "penstock_kvindex")


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
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    for name in _OURS:
        logging.getLogger(name).setLevel(level.upper())
