"""What can be seen of an engine's passes from outside: which prompts one held, when it began, and how long it took.

Bookings tell it of prompts placed, of first tokens and of streams that come and go; it hands measured `Passes` on, for the
fit of the endpoint's class. A pass ends with the first tokens of the prompts in it. It began when the pass before it ended,
or, on an idle endpoint, when its first prompt was placed, or, beside decoding streams, with the step after their newest
token. What cannot be told apart (others' prompts, prompts placed about when a pass began) is not measured. While nothing but
decoding happens, one stream's tokens time the steps: per token nothing is done. It knows no profile and decides nothing.
"""

import math
from collections.abc import Callable

from penstock_core.profile import PASS_TOKENS
from penstock_core.profile_fit import Passes

from penstock_router import columns as col
from penstock_router.beliefs import Beliefs, Streaming

_ON_THE_WAY_S = 0.004
"""Prompts placed so shortly before or after a pass began may be in it or not."""
_SAME_PASS_S = 0.001
"""First tokens that come closer together than this are of one pass."""
_LEAST_STEPS = 4
"""Decode steps timed together; fewer are blurred by when chunks are read."""
_MOST_PASSES = 8
"""A prompt of more passes than this is not measured."""
_PAUSE_S, _RETRY_S = 0.1, 0.01
"""Between two timings of an endpoint's decode steps; after one that was too short."""
_PASS_PAUSE_S = 0.05
"""Between two measured passes of an endpoint, where skipping one loses no track of the others."""
_FOREIGN_SHARE = 0.1

Take = Callable[[int, Passes], None]


_Prompt = list[float]
_PLACED_S, _NEW, _HELD = range(3)
"""A prompt that waits or is being computed: when it was placed, tokens still to compute, tokens computed or cached."""


class _Side:
    """What is watched of one endpoint."""

    __slots__ = ("began_s", "next_s", "since_s", "since_tokens", "step_s", "timer", "waiting", "wanted_s")

    def __init__(self) -> None:
        self.waiting: dict[object, _Prompt] = {}  # in the order of placing, as the engine takes them
        self.began_s = math.nan  # when the pass under way began; NaN: not known
        self.timer: Streaming | None = None  # the stream whose tokens time decode steps
        self.since_s = self.since_tokens = 0.0
        self.step_s = math.nan  # the newest measured step
        self.next_s = self.wanted_s = 0.0  # before then no steps, and no passes of one prompt, are measured


class PassWatch:
    """State: a `_Side` a row of the beliefs. `take(row, passes)` is called with what was measured."""

    def __init__(self, beliefs: Beliefs, take: Take) -> None:
        self._beliefs = beliefs
        self._take = take
        self._sides: dict[int, _Side] = {}  # by row

    def begin(self, r: int) -> None:
        """Row r is an endpoint's from now on."""
        self._sides[r] = _Side()

    # -- prompts --------------------------------------------------------------------------------------------------

    def placed(self, r: int, owner: object, new_tokens: float, held_tokens: float, now: float, seen: bool = True) -> None:
        """A prompt was booked at row r; not `seen`: by another router, whose times are not known here in time."""
        side = self._sides[r]
        if not side.waiting:
            if side.timer is not None:
                self.pause(r)
            side.began_s = self._next_pass_s(r, side, now)
        if not seen:
            side.began_s = math.nan
        side.waiting[owner] = [now, new_tokens, held_tokens]

    def counted(self, r: int, owner: object, new_tokens: float, held_tokens: float) -> None:
        """The worker says how much of the prompt it had to compute."""
        prompt = self._sides[r].waiting.get(owner)
        if prompt is not None:
            prompt[_NEW], prompt[_HELD] = max(1.0, new_tokens), held_tokens

    def ended(self, r: int, owner: object, now: float) -> None:
        """The prompt's first token, or the answer of its prefill leg, has come: a pass has just ended at row r."""
        side = self._sides[r]
        prompt = side.waiting.get(owner)
        if prompt is None:
            return  # of a pass that is known to have ended
        waiting, took_s = side.waiting, now - side.began_s
        if took_s < _SAME_PASS_S:
            del waiting[owner]
            return
        if not prompt[_PLACED_S] <= side.began_s + _ON_THE_WAY_S:  # also where nothing is known of the beginning
            del waiting[owner]
        elif now < side.wanted_s and len(waiting) == 1:
            waiting.clear()  # enough has been measured here just now
        else:
            self._measure(r, side, owner, now)
            side.wanted_s = now + _PASS_PAUSE_S
        side.began_s = now if waiting else math.nan

    def given_up(self, r: int, owner: object) -> None:
        """The prompt was withdrawn, or nobody saw when it was through."""
        side = self._sides[r]
        if side.waiting.pop(owner, None) is not None:
            side.began_s = math.nan

    def _next_pass_s(self, r: int, side: _Side, now: float) -> float:
        """When the pass begins that takes a prompt placed now, at an endpoint where none waits; NaN: not known."""
        cells, base = self._beliefs.row_cells, r * col.ROW
        if cells[base + col.STREAMS] + cells[base + col.FOREIGN_STREAMS] <= 0.0:
            return now
        if math.isnan(side.step_s):
            return math.nan
        timer = self._beliefs.newest_owner(r)
        if timer is None:
            return math.nan
        due_s = self._beliefs.cells[timer.cell + col.LAST_S] + side.step_s
        return due_s if now <= due_s + _SAME_PASS_S else math.nan  # else it has not been told of its newest tokens

    def _measure(self, r: int, side: _Side, owner: object, now: float) -> None:
        """Hand on the passes since `began_s` where it is certain what was in them; prompts that ended in them wait no more."""
        cells, base, began_s = self._beliefs.row_cells, r * col.ROW, side.began_s
        b = cells[base + col.STREAMS] + cells[base + col.FOREIGN_STREAMS]
        context = cells[base + col.CONTEXT] + cells[base + col.FOREIGN_CONTEXT]
        budget = max(1.0, cells[base + PASS_TOKENS] - b)
        foreign = cells[base + col.FOREIGN_PROMPT] > 0.0 or cells[base + col.FOREIGN_STREAMS] > _FOREIGN_SHARE * b
        if len(side.waiting) == 1 and side.waiting[owner][_NEW] <= budget:
            _, new, held = side.waiting.pop(owner)
            parts: tuple[tuple[float, float], ...] | None = ((new, new * held),)
        else:
            parts = _taken(side, owner, budget)
        if parts is not None and not foreign:
            self._take(r, Passes(parts, len(parts) if b > 0.0 else 0, b, context, now - began_s))

    # -- decode steps ---------------------------------------------------------------------------------------------

    def resume(self, r: int, owner: Streaming | None, now: float) -> None:
        """The batch of row r has changed: time its steps from here on, if nothing else happens. `owner` has a token of now."""
        side, beliefs = self._sides[r], self._beliefs
        cells, base = beliefs.row_cells, r * col.ROW
        streams = cells[base + col.STREAMS]
        if now < side.next_s or side.waiting or streams != cells[base + col.CELLS_USED] or streams <= 0.0:
            return
        if cells[base + col.FOREIGN_PROMPT] > 0.0 or cells[base + col.FOREIGN_STREAMS] > _FOREIGN_SHARE * streams:
            return
        timer = owner if owner is not None else beliefs.newest_owner(r)
        if timer is None:
            return
        since_s = beliefs.cells[timer.cell + col.LAST_S]
        if timer is not owner and not now - since_s <= 1.5 * side.step_s:
            return  # it has not been told of its newest tokens
        side.timer, side.since_s, side.since_tokens = timer, since_s, beliefs.cells[timer.cell + col.TOKENS]

    def pause(self, r: int) -> None:
        """The batch of row r is about to change: what its steps took till now is known."""
        side = self._sides[r]
        timer = side.timer
        if timer is None:
            return
        side.timer = None
        if timer.cell < 0:
            return
        cells, rows, base = self._beliefs.cells, self._beliefs.row_cells, r * col.ROW
        steps = cells[timer.cell + col.TOKENS] - side.since_tokens
        if steps < _LEAST_STEPS:
            side.next_s = side.since_s + _RETRY_S
            return
        last_s = cells[timer.cell + col.LAST_S]
        took_s = last_s - side.since_s
        b = rows[base + col.STREAMS] + rows[base + col.FOREIGN_STREAMS]
        context = rows[base + col.CONTEXT] + rows[base + col.FOREIGN_CONTEXT] - b * steps / 2.0
        side.step_s, side.next_s = took_s / steps, last_s + _PAUSE_S
        self._take(r, Passes((), round(steps), b, max(0.0, context), took_s))


def _taken(side: _Side, owner: object, budget: float) -> tuple[tuple[float, float], ...] | None:
    """(new tokens, Σ new·cached) of each pass up to that in which the owner's prompt ended; None where that is not certain.

    First come, first served, `budget` tokens a pass. What ended is taken from `side.waiting`; what has begun is less there.
    """
    began_s = side.began_s
    first = next(iter(side.waiting.values()))
    early = [(one, prompt) for one, prompt in side.waiting.items() if prompt[_PLACED_S] <= began_s + _ON_THE_WAY_S]
    blurred = any(prompt is not first and abs(prompt[_PLACED_S] - began_s) < _ON_THE_WAY_S for prompt in side.waiting.values())
    through = present = 0.0
    for one, prompt in early:
        present += prompt[_NEW]
        if one is owner:
            through = present
    passes = math.ceil(through / budget)
    load = min(present, passes * budget)
    late = passes > 1 and len(early) < len(side.waiting) and load < passes * budget  # later ones may have filled the last pass up
    room, pairs = load, 0.0
    for one, prompt in early:
        taken = min(prompt[_NEW], room)
        pairs += taken * prompt[_HELD]
        room -= taken
        if taken < prompt[_NEW]:
            prompt[_NEW] -= taken
            prompt[_HELD] += taken
            break
        del side.waiting[one]
    if blurred or late or not 1 <= passes <= _MOST_PASSES:
        return None
    # A prompt of several passes attends to its own tokens of the passes before.
    sizes = [min(budget, load - number * budget) for number in range(passes)]
    return tuple((size, pairs / passes + size * budget * number) for number, size in enumerate(sizes))
