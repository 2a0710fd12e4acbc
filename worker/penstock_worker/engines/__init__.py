"""Engines behind the contract of `penstock_worker.engine`, one package each; the host is told which one to build."""
