"""The gRPC front: admits, queues, dispatches to a runtime, serves audiences. Torch-free; survives restarts."""
