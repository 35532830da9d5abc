"""What the results table compares, one file a family of systems. Each is trained and judged by the same protocol."""
