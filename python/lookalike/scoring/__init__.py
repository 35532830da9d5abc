"""Customised models made fast: compiled to TorchScript, scoring in large batches. Knows `model`, not the pool."""
