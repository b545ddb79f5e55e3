"""The gate's canaries: rows that are embedded again by the exported towers must come out as the files hold them.

They catch what no count can: a file of another training run, a tower that was exported from other weights, features
that serving prepares differently from the batch job.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lockstep.tags import Artifact, Kind
from lockstep.towers import Tower
from serving.gate_checks import SIDES, Check, Subject, at_most, sample

TOLERANCE = 1e-4
"""Largest difference of one coordinate: other batch shapes round differently."""
TOLERANCE_FLOAT16 = 1e-3
"""The same where the file holds float16, which rounds by up to half as much."""


def check_canaries(subject: Subject) -> Iterator[Check]:
    """Embed some rows of each side again and compare."""
    for file_kind, tower_kind, side in SIDES:
        tower = Tower.open(subject.parts[tower_kind].path, tower_kind, subject.release_id.model_version)
        rows = dict(sample(subject.parts[file_kind], subject.section.canaries))
        features = _features(subject, side, list(rows))
        missing = set(rows) - set(features)
        if missing or not rows:
            note = f"{len(missing)} of {len(rows)} ids are no entities"
            yield Check(f"{side}: canaries", None, TOLERANCE, False, note)
            continue
        ids = sorted(rows)
        again = tower.embed(pa.concat_arrays([features[one] for one in ids])).vectors
        stored = np.concatenate([rows[one].vectors for one in ids])
        difference = float(np.abs(again - stored).max())
        tolerance = TOLERANCE_FLOAT16 if _is_float16(subject.parts[file_kind]) else TOLERANCE
        yield at_most(f"{side}: canaries, largest difference", difference, tolerance, f"{len(ids)} rows")


def _is_float16(embeddings: Artifact) -> bool:
    schema = pq.read_schema(next(embeddings.path.glob("part-*.parquet")))
    return bool(schema.field("embedding").type.value_type == pa.float16())


def _features(subject: Subject, side: str, ids: list[str]) -> dict[str, pa.StructArray]:
    """id -> [1] raw features."""
    found = {}
    for path in sorted((subject.parts[Kind.ENTITIES] / side).glob("part-*.parquet")):
        table = pq.read_table(path, columns=["id", "features"], filters=[("id", "in", ids)]).combine_chunks()
        for batch in table.to_batches():
            for row, one in enumerate(batch.column("id").to_pylist()):
                found[one] = batch.column("features").slice(row, 1)
    return found
