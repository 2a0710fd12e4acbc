"""Cuts an answer at its stop texts, holding back no more text than could still become one.

One a choice, used by answers that have stop texts and by the reference. Knows words only as text.
"""

from collections.abc import Sequence


class StopText:
    """Takes words one by one and gives out the text that is certain to be part of the answer."""

    def __init__(self, stops: Sequence[str], min_words: int = 0) -> None:
        self._stops = stops
        self._min_words = min_words
        self._hold = max(map(len, stops), default=1) - 1
        self._held = ""
        self._words = 0
        self.stopped = False

    def add(self, text: str) -> str:
        """Take the next word; the text that can go out now. After a stop text was met, `stopped` is true."""
        self._words += 1
        self._held += text
        if self._words >= self._min_words:
            found = [at for at in (self._held.find(stop) for stop in self._stops) if at >= 0]
            if found:
                self.stopped = True
                out, self._held = self._held[: min(found)], ""
                return out
        certain = max(0, len(self._held) - self._hold)
        out, self._held = self._held[:certain], self._held[certain:]
        return out

    def rest(self) -> str:
        """What was held back, once the answer has ended; "" after a stop text."""
        out, self._held = self._held, ""
        return out
