"""Looks inside trained systems, one file a study; each gives plain data, drawn elsewhere."""
