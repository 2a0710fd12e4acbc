"""`penstock up` with a real engine: what the documentation tells users to type."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import psutil
import pytest
from penstock_cli.data_folder import DataFolder
from raw_engine import CPU_ENVIRONMENT, SMALL_ARGS

UP_S = 1_200.0


@pytest.mark.long
def test_up_serves_a_real_engine_and_ctrl_c_leaves_nothing_behind(vllm_python: str, tiny_model: Path, tmp_path: Path) -> None:
    """One undivided worker with `--engine vllm --model FOLDER`: a chat is answered under the name given, and all processes end."""
    command = [
        sys.executable,
        "-m",
        "penstock_cli.main",
        "up",
        "--engine",
        "vllm",
        "--model",
        str(tiny_model),
        "--engine-python",
        vllm_python,
    ]
    command += ["--served-model-name", "tiny", "--prefill", "0", "--decode", "0", "--both", "1", "--host", "process", "--port", "0"]
    command += ["--data", str(tmp_path / "data"), *(f"--engine-arg={word}" for word in SMALL_ARGS)]
    command += [f"--engine-env={name}={value}" for name, value in CPU_ENVIRONMENT.items()]
    log = tmp_path / "up.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, stdin=subprocess.DEVNULL)
    below: list[psutil.Process] = []
    try:
        deadline_s = time.monotonic() + UP_S
        while (running := DataFolder(tmp_path / "data").running()) is None:
            assert process.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < deadline_s, log.read_text()[-3000:]
            time.sleep(0.2)
        below = psutil.Process(process.pid).children(recursive=True)
        assert any("EngineCore" in one.name() for one in below)
        body = {"model": "tiny", "messages": [{"role": "user", "content": "water"}], "max_tokens": 5, "temperature": 0}
        answer = httpx.post(f"{running.router_url}/v1/chat/completions", json=body, timeout=300.0, trust_env=False)
        assert answer.status_code == 200, answer.text
        assert answer.json()["usage"]["completion_tokens"] <= 5
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(120)
    _, alive = psutil.wait_procs(below, timeout=60)
    assert alive == []
