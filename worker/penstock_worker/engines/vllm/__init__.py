"""vLLM behind the engine contract: a child process of its own environment, or a server that already runs."""
