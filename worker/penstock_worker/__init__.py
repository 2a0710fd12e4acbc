"""Hosts one engine replica: fronts it over HTTP, registers it, reports its load and publishes its KV events."""
