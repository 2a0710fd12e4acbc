"""JSON logs: one object a line, with the request id where there is one; nothing per successful request at the default level.

`configure` is called once by the process assembly. Numbers of an event go into `extra={"facts": {...}}`; secrets never do.
"""

import logging
import sys
import time
from typing import TextIO

import msgspec

ROOT = "penstock"


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


def configure(level: str, stream: TextIO | None = None) -> None:
    """Send everything under `penstock` as JSON to `stream` (default: standard error). Called again, it replaces the handler."""
    logger = logging.getLogger(ROOT)
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
    handler = logging.StreamHandler(stream if stream is not None else sys.stderr)
    handler.setFormatter(JsonFormatter())
    logger.addHandler(handler)
    logger.setLevel(level.upper())
    logger.propagate = False


def logger_of(name: str) -> logging.Logger:
    """The logger of one module of the router."""
    return logging.getLogger(f"{ROOT}.router.{name}")
