"""Lookalike: audience expansion. A campaign and its seed users in, the exact top K of a pool out, with evidence."""

__version__ = "0.1.0"

__all__ = ["__version__"]
