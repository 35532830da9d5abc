"""Candidate pools: from Parquet to immutable memory-mapped snapshots sorted by user id. Torch-free."""
