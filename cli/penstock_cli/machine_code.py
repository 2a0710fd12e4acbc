"""Machine code that comes with the image: compiled when it is built, so that no process spends a core for half a minute at its start.

The Dockerfile runs `python -m penstock_cli.machine_code FOLDER`; `main` calls `use_shipped` before anything is compiled. numba
takes code only from a folder that it can write to, and the image's is read-only: hence a copy, a few MB. The code is for the plainest
processor of the architecture (NUMBA_CPU_NAME=generic in the image), which costs a decision nothing that can be measured.
"""

import os
import shutil
import sys
import tempfile
from collections.abc import MutableMapping
from pathlib import Path

SHIPPED_ENV = "PENSTOCK_MACHINE_CODE"
"""Set by the image: where it keeps the code."""
_NUMBA_ENV = "NUMBA_CACHE_DIR"


def use_shipped(environ: MutableMapping[str, str]) -> None:
    """Copy the image's machine code to a folder that can be written, once a container, and tell numba. Elsewhere nothing happens."""
    shipped = environ.get(SHIPPED_ENV)
    if not shipped or environ.get(_NUMBA_ENV):
        return
    copy = Path(tempfile.gettempdir()) / f"penstock-machine-code-{os.getuid()}"
    if not copy.is_dir():
        unfinished = Path(tempfile.mkdtemp(prefix="penstock-machine-code-"))
        try:
            shutil.copytree(shipped, unfinished, dirs_exist_ok=True)
            unfinished.rename(copy)  # fails where another process of the container was quicker
        except OSError:
            shutil.rmtree(unfinished, ignore_errors=True)
    if copy.is_dir() and copy.lstat().st_uid == os.getuid():
        environ[_NUMBA_ENV] = str(copy)


def compile_all() -> None:
    """Everything that a router or an autoscaler compiles, into numba's folder. Up to a minute; nothing where numba is absent."""
    from random import Random

    from penstock_core import compiled_hash
    from penstock_kvindex import mirror
    from penstock_router.config import RouterConfig
    from penstock_router.scheduling import Scheduler
    from penstock_simulator import what_if

    Scheduler(RouterConfig().policy, rng=Random(0)).warm_up()  # noqa: S311  nothing is drawn
    compiled_hash.warm_up()
    mirror.warm_up()
    what_if.warm_up()


if __name__ == "__main__":
    os.environ[_NUMBA_ENV] = sys.argv[1]
    compile_all()
