"""What the operator makes, as Kubernetes objects: pure functions from the resources to JSON values."""
