"""Which endpoint holds which chunk: the registry of workers and the index of their KV, local and in Redis.

Workers register and publish through it, routers tail it. It knows chunk keys and slots, not prompts, tokens or HTTP.
"""
