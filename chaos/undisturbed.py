"""What every order must get: the same requests, run one after the other in one process that nobody disturbs.

    python chaos/undisturbed.py ORDERS DATASET CHECKPOINT POOL OUTPUT [SECTION.KEY=VALUE ...]

Writes JSON: for each content of an order the SHA-256 of the audience's file, and of its members as a client reads them.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from pathlib import Path

import plan
from customers import rows_bytes, seeds_of

from lookalike.cli.options import configuration
from lookalike.dataset.layout import Dataset
from lookalike.expander import Expander


def main() -> None:
    """See the module."""
    orders, dataset_folder, checkpoint, pool, output = map(Path, sys.argv[1:6])
    dataset = Dataset.open(dataset_folder)
    expander = Expander.open(checkpoint, pool, configuration(None, sys.argv[6:], checkpoint=checkpoint))
    wanted = {order.content: order for order in plan.read(orders)}
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for content, order in sorted(wanted.items()):
            audience = expander.expand(
                campaign=str(order.campaign),
                seeds=seeds_of(dataset, order.campaign),
                k=order.k,
                random_seed=order.random_seed,
                output=Path(folder) / content,
            )
            members = audience.members(0, audience.num_members)
            rows = rows_bytes(members["user_id"].to_numpy(), members["score"].to_numpy())
            found[content] = {
                "audience_sha256": audience.receipt.audience_sha256,
                "members_sha256": hashlib.sha256(rows).hexdigest(),
            }
    output.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
