"""When the operator calls itself alive and ready, in time that passes by arithmetic; and what the kubelet is told."""

import httpx
from penstock_dataplane.loop import run
from penstock_dataplane.probes import MOST_LAG_S, Probes
from penstock_operator.health import MOST_WATCH_AGE_S, Health
from penstock_operator.metrics import OperatorMetrics


class Now:
    """A clock that stands until it is set."""

    def __init__(self) -> None:
        self.s = 1_000.0

    def __call__(self) -> float:
        return self.s


def leading(now: Now) -> Health:
    health = Health(now)
    health.leading, health.synced = True, lambda: True
    return health


def test_a_watch_that_says_nothing_is_named() -> None:
    """Bookmarks come every minute: three minutes of silence of any one kind are the end, and the kind is in the words."""
    health = leading(Now())
    health.ages = lambda: {"Pod": MOST_WATCH_AGE_S, "Service": 1.0}
    assert health.troubles() == []
    health.ages = lambda: {"Pod": MOST_WATCH_AGE_S + 1, "Service": 1.0}
    assert health.troubles() == ["the watch of Pod has said nothing for 181 s; allowed: 180"]
    health.leading = False
    assert health.troubles() == [], "who waits for the Lease watches nothing"


def test_a_loop_that_hangs_and_a_thread_that_ended_are_told() -> None:
    """The loop counts for everyone, the thread for the leader."""
    now = Now()
    health = leading(now)
    health.watching = lambda: False
    assert health.troubles() == ["the thread that watches has ended"]
    health.leading = False
    now.s += MOST_LAG_S + 1
    assert health.troubles() == ["the event loop has not turned for 31 s; allowed: 30"]


def test_the_kubelet_is_answered() -> None:
    """Alive and not ready while not everything has been listed; both afterwards; 503 with the words when something is wrong."""
    now = Now()
    health = leading(now)
    health.synced = lambda: False

    async def story() -> None:
        probes = Probes(health, OperatorMetrics().text)
        url = await probes.start("127.0.0.1", 0)
        async with httpx.AsyncClient(base_url=url) as client:

            async def codes() -> list[int]:
                return [(await client.get(path)).status_code for path in ("/healthz", "/readyz", "/metrics", "/other")]

            assert await codes() == [200, 503, 200, 404]
            health.synced = lambda: True
            assert await codes() == [200, 200, 200, 404]
            health.ages = lambda: {"Pod": 400.0}
            assert await codes() == [503, 503, 200, 404]
            assert "the watch of Pod" in (await client.get("/healthz")).json()["troubles"][0]
        await probes.aclose()

    run(story())
