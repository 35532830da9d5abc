"""From a scored pool to an audience with its evidence. `topk`, `receipt` and `audience` are free of torch."""
