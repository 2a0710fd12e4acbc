"""The cost of placing a request, computed over flat arrays in numba's subset of Python.

Compiled (and cached) where numba is installed, the same text run as plain Python where it is not. The policies and the
beliefs call it; it knows rows and columns, no endpoint, no request, no clock. Formulas: design, "Placement".
"""

from penstock_router.kernel.choices import least_cost, least_pair, least_running, least_step, mix
from penstock_router.kernel.compiled import COMPILED, SOURCES
from penstock_router.kernel.durations import decode_s, prefill_s, through_s
from penstock_router.kernel.passes import advance, book, book_prompt, computed, withdraw

__all__ = [
    "COMPILED",
    "SOURCES",
    "advance",
    "book",
    "book_prompt",
    "computed",
    "decode_s",
    "least_cost",
    "least_pair",
    "least_running",
    "least_step",
    "mix",
    "prefill_s",
    "through_s",
    "withdraw",
]
