"""Ten thousand clients that connect and say nothing: the router serves the others meanwhile, and sweeps these."""

import asyncio
import resource
import subprocess
import sys
import time
from pathlib import Path

import msgspec
from penstock_dataplane.loop import run
from penstock_worker.engines.sim.reference import reference_text

IDLE = 10_000
SPARE_FILES = 1_000
IDLE_S = 3.0

# The silent clients are a process of their own, so that their descriptors do not count against the router's or the test's limit.
# It says "open" when all are connected, and then how many the router has closed, once nobody is left or a minute has passed.
CLIENTS = """
import resource, select, socket, sys, time
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
port, count = int(sys.argv[1]), int(sys.argv[2])
poll, socks = select.epoll(), {}
for _ in range(count):
    sock = socket.create_connection(("127.0.0.1", port), timeout=60)
    socks[sock.fileno()] = sock
    poll.register(sock, select.EPOLLIN)
print("open", flush=True)
closed, deadline = 0, time.monotonic() + 60
while socks and time.monotonic() < deadline:
    for number, _ in poll.poll(0.5):
        sock = socks.pop(number)
        closed += not sock.recv(1)
        sock.close()
print(closed, flush=True)
"""


def _descriptors(pid: int) -> int:
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


def _body(number: int) -> bytes:
    messages = [{"role": "user", "content": f"{number} still served " * 30}]
    return msgspec.json.encode({"model": "m", "stream": True, "max_tokens": 20, "ignore_eos": True, "messages": messages})


def test_ten_thousand_idle_connections_are_swept_while_others_are_served(start_stack):
    """As many as the machine's limit of open files allows; not one of them is lost without a word, and no descriptor is left."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    count = IDLE if hard == resource.RLIM_INFINITY else min(IDLE, hard - SPARE_FILES)
    assert count >= 1_000, f"the hard limit of open files is {hard}"

    async def story():
        async with start_stack(prefill=1, decode=1, worker={"speed": 20}, router={"idle_timeout_s": IDLE_S}) as stack:
            pid = stack.router.pid
            assert (await stack.chat(_body(0))).error is None
            before = _descriptors(pid)
            port = stack.url.rpartition(":")[2]
            command = (sys.executable, "-c", CLIENTS, port, str(count))
            clients = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
            replies, most = [], 0
            try:
                said = asyncio.ensure_future(clients.stdout.read())
                while not said.done():
                    most = max(most, _descriptors(pid))
                    body = _body(len(replies))
                    replies.append((body, await stack.chat(body)))
                closed = (await said).split()
            finally:
                if clients.returncode is None:
                    clients.kill()
                await clients.wait()
            await stack.until(lambda: _descriptors(pid) <= before + 8, "the router's descriptors are given back")
            await stack.until_async(stack.idle, "nothing is left")
            return most - before, closed, replies

    began = time.monotonic()
    most, closed, replies = run(story())
    assert closed == [b"open", str(count).encode()]
    assert most > count / 2, f"only {most} were seen open at once"
    assert len(replies) > 10, f"{len(replies)} answers in {time.monotonic() - began:.1f} s"
    assert [reply.error for _, reply in replies if reply.error] == []
    assert all(reply.text == reference_text(body) for body, reply in replies)
