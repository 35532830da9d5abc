"""Campaign histories: the layout, vocabularies, published and synthetic sets, negative sampling. Torch-free."""
