"""What is said where a command needs a part of Penstock that was not installed with it.

Commands put their imports of such parts inside `needing`.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from penstock_core.errors import PenstockError


class NotInstalled(PenstockError):
    """A library of an extra is not there."""


@contextmanager
def needing(extra: str) -> Iterator[None]:
    """Raises NotInstalled, naming the extra, where an import inside fails."""
    try:
        yield
    except ImportError as error:
        raise NotInstalled(f"{error.name} is not installed; install penstock[{extra}]") from None
