"""The keyed queue: nothing lost, nothing twice at a time, nobody starved."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from penstock_operator.queue import FIRST_BACKOFF_S, LONGEST_BACKOFF_S, KeyedQueue, backoff_s

KEYS = st.sampled_from("abcdef")
CONCURRENCY = 2


class QueueMachine(RuleBasedStateMachine):
    """Adds, takes and ends keys at rising times, beside a plain account of what is owed."""

    def __init__(self) -> None:
        super().__init__()
        self.queue: KeyedQueue[str] = KeyedQueue(CONCURRENCY)
        self.now = 100.0
        self.running: set[str] = set()
        self.owed: set[str] = set()  # added, and not taken since
        self.failing: dict[str, int] = {}
        self.generations: dict[str, int] = {}

    @rule(key=KEYS, delay_s=st.sampled_from((0.0, 0.2, 5.0)))
    def add(self, key: str, delay_s: float) -> None:
        self.queue.add(key, self.now, delay_s=delay_s, generation=self.generations.get(key, -1))
        self.owed.add(key)

    @rule(key=KEYS)
    def change(self, key: str) -> None:
        """A new generation: due at once, whatever failed before."""
        self.generations[key] = self.generations.get(key, 0) + 1
        self.queue.add(key, self.now, generation=self.generations[key])
        self.owed.add(key)
        if self.generations[key] > 1:
            self.failing.pop(key, None)
            if key not in self.running:
                next_at = self.queue.next_at()
                assert next_at is not None and next_at <= self.now

    @rule()
    def take(self) -> None:
        key = self.queue.take(self.now)
        if key is not None:
            assert key not in self.running, "the same key twice at a time"
            assert key in self.owed
            self.owed.discard(key)
            self.running.add(key)

    @precondition(lambda self: bool(self.running))
    @rule(failed=st.booleans(), after_s=st.none() | st.just(3.0), which=st.integers(0, 5))
    def done(self, failed: bool, after_s: float | None, which: int) -> None:
        key = sorted(self.running)[which % len(self.running)]
        self.running.discard(key)
        self.queue.done(key, self.now, failed=failed, after_s=after_s)
        if failed:
            self.failing[key] = self.failing.get(key, 0) + 1
        else:
            self.failing.pop(key, None)
        if failed or after_s is not None:
            self.owed.add(key)

    @rule(step_s=st.sampled_from((0.1, 1.0, 30.0)))
    def wait(self, step_s: float) -> None:
        self.now += step_s

    @invariant()
    def bounded(self) -> None:
        assert len(self.running) == self.queue.running <= CONCURRENCY
        assert self.queue.depth == len(self.owed - self.running)

    def teardown(self) -> None:
        """Whatever is owed comes up within the longest back-off, and then the queue is empty."""
        for key in sorted(self.running):
            self.queue.done(key, self.now)
        self.now += LONGEST_BACKOFF_S + 10.0
        seen = set()
        while (key := self.queue.take(self.now)) is not None:
            seen.add(key)
            self.queue.done(key, self.now)
        assert seen >= self.owed, "a key was lost"
        assert self.queue.depth == self.queue.running == 0
        assert self.queue.next_at() is None


def test_the_queue_loses_nothing_and_runs_no_key_twice_at_a_time() -> None:
    """Any order of adds, takes, failures and successes keeps the invariants."""
    run_state_machine_as_test(QueueMachine, settings=settings(max_examples=150, stateful_step_count=40, deadline=None))


def test_a_failing_key_never_starves_others() -> None:
    """Two keys that always fail and one good one, one at a time: the good one runs on the first pass."""
    queue: KeyedQueue[str] = KeyedQueue(1)
    for key in ("bad", "worse", "good"):
        queue.add(key, 0.0)
    taken, now = [], 0.0
    while "good" not in taken:
        key = queue.take(now)
        assert key is not None, "the good key waits although nothing runs"
        taken.append(key)
        queue.done(key, now, failed=key != "good")
    assert taken == ["bad", "worse", "good"]


def test_a_new_generation_ends_the_back_off() -> None:
    """A fix is tried at once; events of the same generation wait."""
    queue: KeyedQueue[str] = KeyedQueue(1)
    queue.add("a", 0.0, generation=1)
    for attempt in range(1, 6):
        due = queue.next_at()
        assert due is not None and queue.take(due) == "a"
        queue.done("a", due, failed=True)
        assert queue.next_at() == due + backoff_s(attempt)
    blocked_until = queue.next_at()
    now = due + 0.1
    queue.add("a", now, generation=1)
    assert queue.next_at() == blocked_until
    queue.add("a", now, generation=2)
    assert queue.take(now) == "a"


def test_a_fix_that_arrives_while_its_key_runs_is_tried_at_once() -> None:
    """The failure of the old spec does not delay the new one."""
    queue: KeyedQueue[str] = KeyedQueue(1)
    queue.add("a", 0.0, generation=1)
    assert queue.take(0.0) == "a"
    queue.add("a", 0.1, generation=2)
    queue.done("a", 0.2, failed=True)
    assert queue.take(0.2) == "a"


def test_many_adds_are_one_run() -> None:
    """Fifty updates while a key waits are reconciled once."""
    queue: KeyedQueue[str] = KeyedQueue(4)
    for step in range(50):
        queue.add("a", step / 100, generation=step, delay_s=0.0)
    assert queue.take(1.0) == "a"
    queue.done("a", 1.0)
    assert queue.take(1.0) is None and queue.depth == 0


def test_the_back_off_is_bounded() -> None:
    """It starts small, doubles, and stops growing."""
    assert backoff_s(1) == FIRST_BACKOFF_S
    assert backoff_s(2) == 2 * FIRST_BACKOFF_S
    assert backoff_s(10_000) == LONGEST_BACKOFF_S
