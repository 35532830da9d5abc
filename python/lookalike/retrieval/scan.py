"""One pass over the pool: score a block, push it into the top-K while it is in cache, forget it.

Knows `scoring`, `pool` and `topk`; knows nothing of campaigns or files.
"""

from __future__ import annotations

from collections.abc import Callable

from lookalike.errors import Cancelled, DataCorrupted, InternalError, InvalidInput
from lookalike.pool.snapshot import Pool
from lookalike.retrieval.topk import TopK
from lookalike.scoring.engine import Engine

DIVERGED = "the customised model scores NaN; the general model or its adaptation has diverged"


def scan(
    pool: Pool,
    engine: Engine,
    top: TopK,
    *,
    save: Callable[[TopK], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> None:
    """Score every user from row `top.rows_seen` on into `top`, shard by shard.

    Args:
        top: new, or as it was after a shard of an earlier run over the same pool with the same engine.
        save: called after every shard; `top.rows_seen` is then the watermark, for rows are scored in order.
        progress: called with (rows scored, all) after every block.
        cancelled: asked before every block.

    Raises:
        Cancelled: `cancelled()` turned true. InternalError: the model gives NaN. DataCorrupted: the pool holds an id
            beyond its vocabulary.
    """
    for end in pool.shard_ends:
        first = top.rows_seen
        for start in range(first, end, engine.batch_size):
            if cancelled is not None and cancelled():
                raise Cancelled("the expansion was cancelled while scoring")
            stop = min(start + engine.batch_size, end)
            try:
                engine.score_into(top.core, pool.read(start, stop), start)
            except InvalidInput as error:
                if error.field == "scores":
                    raise InternalError(DIVERGED) from error
                raise DataCorrupted(f"rows {start}:{stop} of the pool: {error}", field="pool") from error
            if progress is not None:
                progress(stop, pool.num_users)
        if first < end and save is not None:
            save(top)
    if top.rows_seen != pool.num_users:
        raise InternalError(f"{top.rows_seen} of {pool.num_users} users were scored")
