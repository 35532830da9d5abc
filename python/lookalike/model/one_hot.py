"""Users as a sparse matrix of their ids: the input of what is linear in single ids. Knows `schema`; free of torch."""

from __future__ import annotations

import numpy as np
from scipy.sparse import csr_matrix

from lookalike.schema import EncodedColumns, FeatureSchema


def one_hot(schema: FeatureSchema, users: EncodedColumns) -> csr_matrix:
    """One column for each id of each field, missing and unknown included; `[users, sum of field sizes]`.

    A multi-valued field counts each of its values; an empty one has none.
    """
    rows, columns, start = [], [], 0
    for field in schema.fields:
        ids = users.ids[field.name].astype(np.int64)
        if field.name in users.offsets:
            offsets = users.offsets[field.name]
            rows.append(np.repeat(np.arange(users.length), np.diff(offsets)))
            ids = ids[offsets[0] : offsets[-1]]
        else:
            rows.append(np.arange(users.length))
        columns.append(start + ids)
        start += field.size
    row, column = np.concatenate(rows), np.concatenate(columns)
    return csr_matrix((np.ones(len(row)), (row, column)), shape=(users.length, start))
