"""Figures as PNG and SVG, one file a kind; they know plain data and matplotlib (the extra `evaluation`)."""
