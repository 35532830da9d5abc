"""The client of the front service: order expansions, follow them, read audiences as Arrow.

    with Client("127.0.0.1:8500") as client:
        expansion = client.expand(campaign="spring", seeds=[17, 42, 99], k=10_000)
        for step in expansion.progress():
            print(step.stage, step.users_scored, step.users_total)
        audience = expansion.result()
        for batch in client.members(audience.name):
            ...

A server on another machine wants TLS and a token: `Client(address, token_file=..., ca_file=...)`.

Knows the protos and how statuses become errors; free of torch. Every call has a time-out; every failure is a
LookalikeError with `reason` and, where an input is at fault, `field`.
"""

from lookalike.client.client import Client
from lookalike.client.curation import Changes
from lookalike.client.expansion import Expansion
from lookalike.client.requests import UserIds
from lookalike.client.scoring import Scores

__all__ = ["Changes", "Client", "Expansion", "Scores", "UserIds"]
