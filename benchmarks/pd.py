"""What a hand-over from prefill to decode costs beyond the modelled transfer: `penstock up` with 1P1D beside one undivided worker.

`python -m benchmarks.pd`. Each prompt is asked of both in turn, none twice. The divided answer's first token is due one modelled transfer
and one decode step after the undivided one's; what it takes longer than that is the added time. Method: docs/benchmarks.md.
"""

import http.client
import json
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from penstock_cli.data_folder import DataFolder
from penstock_core.profile import DEFAULT_PROFILE

from benchmarks.bodies import text
from benchmarks.table import Row, keep, show

RUNS = 5
PROMPTS = 20
PROMPT_BYTES = 8_192
_START_S = 120.0


@contextmanager
def up(folder: Path, *options: str) -> Iterator[str]:
    """A `penstock up` of its own; gives the router's URL."""
    data = DataFolder(folder)
    command = [sys.executable, "-m", "penstock_cli.main", "up", "--host", "process", "--port", "0", "--data", str(folder), *options]
    with (folder.parent / f"{folder.name}.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + _START_S
        while (running := data.running()) is None:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"penstock up {' '.join(options)} did not come up: {(folder.parent / f'{folder.name}.log').read_text()}")
            time.sleep(0.05)
        yield running.router_url
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


def first_token(connection: http.client.HTTPConnection, prompt: str) -> tuple[float, int, str]:
    """Seconds until the first content event, prompt tokens by the usage, and the placement header."""
    body = {"model": "sim", "stream": True, "max_tokens": 2, "stream_options": {"include_usage": True}}
    body["messages"] = [{"role": "user", "content": prompt}]
    began = time.perf_counter()
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"content-type": "application/json", "x-penstock-explain": "1"})
    answer = connection.getresponse()
    if answer.status != 200:
        raise RuntimeError(f"{answer.status}: {answer.read(500)!r}")
    first_s, tokens = 0.0, 0
    while line := answer.readline():
        if not line.startswith(b"data: {"):
            continue
        event = json.loads(line[6:])
        if not first_s and any(choice["delta"].get("content") for choice in event["choices"]):
            first_s = time.perf_counter() - began
        tokens = (event.get("usage") or {}).get("prompt_tokens", tokens)
    return first_s, tokens, answer.getheader("x-penstock-placement") or ""


def run(runs: int = RUNS) -> list[Row]:
    """The added time of each run (median of its prompts), and both times to first token."""
    added_ms, divided_ms, undivided_ms = [], [], []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="penstock-bench-")))
        urls = [
            stack.enter_context(up(folder / "divided", "--prefill", "1", "--decode", "1")),
            stack.enter_context(up(folder / "undivided", "--prefill", "0", "--decode", "0", "--both", "1")),
        ]
        divided, undivided = (http.client.HTTPConnection(urlsplit(url).netloc, timeout=60) for url in urls)
        for turn in range(runs + 1):
            samples = []
            for index in range(PROMPTS):
                prompt = text(PROMPT_BYTES, 10_000 + turn * PROMPTS + index)
                alone_s, tokens, _ = first_token(undivided, prompt)
                both_s, _, placement = first_token(divided, prompt)
                if "prefill=prefill-0" not in placement:
                    raise RuntimeError(f"the prompt was not divided: {placement}")
                due_s = alone_s + DEFAULT_PROFILE.transfer_s(tokens) + DEFAULT_PROFILE.decode_s(1, tokens)
                samples.append((both_s - due_s, both_s, alone_s))
            if turn:  # the first turn warms both
                for kept, column in ((added_ms, 0), (divided_ms, 1), (undivided_ms, 2)):
                    kept.append(statistics.median(sample[column] for sample in samples) * 1e3)
    note = f"{PROMPTS} prompts of {tokens} tokens a run, transfer modelled {DEFAULT_PROFILE.transfer_s(tokens) * 1e3:.1f} ms"
    return [
        Row("P/D hand-over beyond the modelled transfer", "ms", tuple(added_ms), 2.0, note),
        Row("TTFT through prefill and decode", "ms", tuple(divided_ms)),
        Row("TTFT of one undivided worker", "ms", tuple(undivided_ms)),
    ]


def main() -> None:
    rows = run(1) if "--quick" in sys.argv else run()
    show("Prefill to decode", rows)
    print(keep("pd", rows))


if __name__ == "__main__":
    main()
