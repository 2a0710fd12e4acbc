"""Layout of the flat arrays behind the beliefs: one row an endpoint, one cell row a decoding stream.

`beliefs` owns the arrays, `kernel` computes on them. A row begins with the endpoint's profile coefficients (laid out by
`penstock_core.profile`), so that a fitted profile can replace them in place. All float64; tokens and counts are whole
numbers in them, times are seconds of the caller's clock.
"""

from penstock_core.profile import COEFFICIENTS

# What is believed of an endpoint; the letters are those of the design's formulas.
BOOKED = COEFFICIENTS  # U: prompt tokens booked here that have no first token yet
COMPUTED = BOOKED + 1  # D: of them (and of the foreign ones), computed already
PASSING = BOOKED + 2  # X: in the pass that began at PASS_START_S; 0 while the next pass has not formed
PASSED = BOOKED + 3  # tokens of the pass before, to tell which pass a first token came from
PASS_START_S = BOOKED + 4  # t_e: when the running pass began, or when the next one forms
STREAMS = BOOKED + 5  # b: our decoding streams, those bound here and still on their way included
CONTEXT = BOOKED + 6  # C: their context tokens
CELLS_USED = BOOKED + 7  # rows of the streams array in use: streams that have had a first token
FOREIGN_PROMPT = BOOKED + 8  # tokens that wait here and that we did not book (load reports)
FOREIGN_STREAMS = BOOKED + 9
FOREIGN_CONTEXT = BOOKED + 10
KV_TOTAL = BOOKED + 11
KV_BOOKED = BOOKED + 12  # prompts plus expected outputs of our bookings
KV_REPORTED = BOOKED + 13
RUNNING = BOOKED + 14  # legs booked here and not over
MISS_RATIO = BOOKED + 15  # share of streams lately ended here that missed their ITL target
HELD_CHUNKS = BOOKED + 16  # of the prompt being placed; zero between decisions
# What the last decision computed for the endpoint.
HIT_TOKENS = BOOKED + 17
TTFT_S = BOOKED + 18
ITL_S = BOOKED + 19
OWN_MISS = BOOKED + 20
OTHERS_MISS = BOOKED + 21
ITL_MISS = BOOKED + 22
WORK = BOOKED + 23
COST = BOOKED + 24
STALL_S = BOOKED + 25  # Δ: what the newcomer adds to every stream there
WAIT_S = BOOKED + 26  # left + through(W)
DECODE_ITL_S = BOOKED + 27  # the same endpoint looked at as the decode side of a pair
DECODE_WAIT_S = BOOKED + 28
PARTNER = BOOKED + 29  # row of the best decode side for it; -1: none
GROUP = BOOKED + 30  # which endpoints can hand KV to one another (generation and connector); -1: none
DEDICATED = BOOKED + 31  # 1 for a prefill-only or decode-only endpoint
PROMPTS = BOOKED + 32  # prompts booked here that have no first token yet: streams of a moment later
REST_S = BOOKED + 33  # what the newcomer adds after the pass in which the last of them ends: their share of Δ
EVER = BOOKED + 34  # prompt tokens ever booked here: where in the queue a prompt ends is told by it
LAST_TOKENS = BOOKED + 35  # tokens in the last of the passes that wait here, if others fit into it; 0: the newcomer begins a pass
SHARED_S = BOOKED + 36  # seconds until that pass is through with the newcomer in it; without it: WAIT_S
PASS_END_S = BOOKED + 37  # when the pass under way ends; now, where none is
AHEAD_S = BOOKED + 38  # what the prompts that wait there already will add to every stream
SLIP_S = BOOKED + 39  # a TTFT prediction here is off by so many seconds whatever it is,
SIGMA = BOOKED + 40  # and by such a share of itself
OTHERS_WAIT = BOOKED + 41  # what prompts there wait longer by the newcomer, as shares of its TTFT target
ALONE_S = BOOKED + 42  # seconds of the newcomer's prefill on an idle endpoint
ROW = BOOKED + 43

# One decoding stream, or one prompt that waits: TOKENS is 0 then.
FIRST_S, LAST_S, TOKENS, TARGET_ITL_S, MOST_TOKENS = range(5)
LENGTH_CLASS = 5  # table of output lengths that it follows; KNOWN: it will have MOST_TOKENS exactly
DUE_S, END_TOKENS = FIRST_S, LAST_S  # of a waiting prompt: when its prefill must have ended, and EVER at its end
CELL = 8  # one cache line

KNOWN = -1
LONGEST_TOKENS = 8_192
"""Last entry of the tables of output lengths; longer outputs are counted as this long."""
SHORTER, STATIONARY = 0, 1
"""Rows of a class's table: F(k) = P(length < k), and (1/mean)·Σ_{g<k}(F(k) − F(g)), for k = 0..LONGEST_TOKENS."""
EVERYTHING = 0
"""The class whose table is that of the whole model."""

# The prompt being placed.
NOW_S, PROMPT, CHUNK_TOKENS, TARGET_TTFT_S, TARGET_S, KV_NEED = range(6)
WORK_PRICE = 6  # of a second of prefill, in misses; the kernel writes it
DUE_AT_S = 7  # when its TTFT target is over
MOST_OUTPUT, OUTPUT_CLASS = 8, 9  # as a cell's MOST_TOKENS and LENGTH_CLASS
ASK = 10
