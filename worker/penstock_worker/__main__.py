"""`python -m penstock_worker --config FILE`: one worker as a process, without the command line's libraries.

The process host starts it so, because it is up faster than `penstock worker`, which does the same for people.
"""

import os
import sys
from pathlib import Path

from penstock_process.settings import ConfigError

from penstock_worker.config import load_config, load_secrets
from penstock_worker.serving import serve_worker


def main(arguments: list[str]) -> int:
    """Exit status 2 for a wrong setting, 1 for an address that cannot be had."""
    if len(arguments) != 2 or arguments[0] != "--config":
        sys.stderr.write("usage: python -m penstock_worker --config FILE\n")
        return 2
    try:
        serve_worker(load_config(Path(arguments[1]), {}), load_secrets(os.environ))
    except ConfigError as error:
        sys.stderr.write(f"penstock worker: {error}\n")
        return 2
    except OSError as error:
        sys.stderr.write(f"penstock worker: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
