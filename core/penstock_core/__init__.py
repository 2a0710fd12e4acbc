"""The nouns of Penstock: values and pure functions that every process shares.

Everybody imports this package; it imports the standard library, msgspec, xxhash and numpy only. Nothing here does I/O,
runs a loop, reads a clock, an environment variable or a random source.
"""
