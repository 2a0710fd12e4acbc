"""The errors that cross a package border, each with the one reaction it asks for, and the outcomes of a request.

A package's own errors stay in that package; what its callers must tell apart stands here. Messages name the field, the
value and what is allowed.
"""

from enum import StrEnum


class Outcome(StrEnum):
    """Every way in which a request can end. One of them, once, per request: status, metric label and log word."""

    OK = "ok"
    CLIENT_GONE = "client_gone"
    BAD_REQUEST = "bad_request"
    BODY_TOO_LARGE = "body_too_large"
    UNAUTHORIZED = "unauthorized"
    FORBIDDEN = "forbidden"
    MODEL_NOT_FOUND = "model_not_found"
    SHED = "shed"
    QUEUE_FULL = "queue_full"
    TENANT_OVER_QUOTA = "tenant_over_quota"
    NO_ENDPOINT = "no_endpoint"
    QUEUE_TIMEOUT = "queue_timeout"
    UPSTREAM_FAILED = "upstream_failed"
    DEADLINE_EXCEEDED = "deadline_exceeded"

    @property
    def status(self) -> int:
        """HTTP status when nothing has been sent yet; 499 is logged for a client that left, never sent."""
        return _STATUS[self]


_STATUS = {
    Outcome.OK: 200,
    Outcome.CLIENT_GONE: 499,
    Outcome.BAD_REQUEST: 400,
    Outcome.BODY_TOO_LARGE: 413,
    Outcome.UNAUTHORIZED: 401,
    Outcome.FORBIDDEN: 403,
    Outcome.MODEL_NOT_FOUND: 404,
    Outcome.SHED: 429,
    Outcome.QUEUE_FULL: 429,
    Outcome.TENANT_OVER_QUOTA: 429,
    Outcome.NO_ENDPOINT: 503,
    Outcome.QUEUE_TIMEOUT: 503,
    Outcome.UPSTREAM_FAILED: 502,
    Outcome.DEADLINE_EXCEEDED: 504,
}


class PenstockError(Exception):
    """Base of all errors that cross a package border."""


class BadInput(PenstockError):
    """The caller's input is wrong; give it back with the message, do not retry."""

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        """Name of the offending field, as the client wrote it."""


class Refused(PenstockError):
    """A worker cannot start the request now; try the next placement at once. `reason`: full, draining, epoch."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"refused: {reason}")
        self.reason = reason


class IndexUnavailable(PenstockError):
    """The shared index cannot be reached; go on with what is known locally and try again later."""


class TransferFailed(PenstockError):
    """KV of a prefill could not be had (gone, claimed, cut off); prefill again."""
