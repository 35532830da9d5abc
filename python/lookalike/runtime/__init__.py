"""Where an expansion runs: in this process, or in a TorchServe worker. The front service knows only `job`."""
