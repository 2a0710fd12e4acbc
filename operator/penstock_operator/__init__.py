"""Turns ModelService and WorkerPool resources into running, drained and upgraded workers."""
