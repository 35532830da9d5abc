"""One module for each version, named by it; none is changed once it is released."""
