"""The worker as a process: settings and secrets in, a served engine until a signal ends it.

The `worker` command calls `run_worker`; everything that a worker is made of is put together in `penstock_worker.assembly`.
"""

from penstock_worker.config import WorkerConfig, WorkerSecrets
from penstock_worker.serving import serve_worker


def run_worker(config: WorkerConfig, secrets: WorkerSecrets) -> None:
    """Serve until SIGTERM or SIGINT has been obeyed (the first drains, the second ends). Raises OSError for a taken address."""
    serve_worker(config, secrets)
