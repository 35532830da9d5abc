"""TorchServe handlers (installed as `lookalike_handlers`): thin over `lookalike.runtime.execute`."""
