"""How models come about: meta-training offline, adaptation online, checkpoints. Knows `model`, `dataset`, `pool`."""
