"""The temporary folder in which Ray's sockets and logs lie, and the removal of those whose process was killed.

`ray_host` makes one for each Ray it starts. A lock on a file in it says that its owner lives: the kernel frees it with the process, however
that ends, and it holds across containers that share a folder, where process ids do not. It knows nothing of Ray.
"""

import fcntl
import os
import shutil
import tempfile
from pathlib import Path

_PREFIX = "penstock-ray-"
_OWNER = "owner"


class RayFolder:
    """A folder of this process until `remove`."""

    def __init__(self, parent: Path | None = None) -> None:
        """None: the system's own for temporary files. Raises OSError."""
        # Short: paths of sockets are.
        self.path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
        made = self.path / f"{_OWNER}.new"
        self._lock = made.open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        made.rename(self.path / _OWNER)  # under this name nobody sees it unlocked while its owner lives

    def remove(self) -> None:
        """With all that is in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        self._lock.close()


def remove_left(parent: Path | None = None) -> None:
    """Remove those of our own user whose process is gone; what cannot be removed stays."""
    for folder in (parent or Path(tempfile.gettempdir())).glob(f"{_PREFIX}*"):
        try:
            if folder.is_symlink() or folder.stat().st_uid != os.getuid():
                continue
            with os.fdopen(os.open(folder / _OWNER, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)) as lock:  # Ray lets anybody write there
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
        except OSError:  # its owner lives, or it is none of these
            continue
