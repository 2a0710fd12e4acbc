"""What engines that are OpenAI servers of their own have in common: a child process or an adopted server, its KV events, its answers."""
