"""HTTP/1.1 between client, router and worker: a server, a client, and the relay that joins them.

Router and worker import it; it knows nothing of models, endpoints or prompts. Everything works on asyncio protocols with
httptools (uvloop where installed): bytes are handed over synchronously, never through a task wake-up per chunk.
Lengths are bytes, times are seconds of the running loop's clock (`loop.time()`).
"""
