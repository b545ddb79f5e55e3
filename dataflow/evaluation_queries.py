"""Evaluation queries: what was known of an entity before a cut, and what it then took."""

from __future__ import annotations

from pathlib import Path

from dataflow.columns import past_values, query_features, struct
from dataflow.entities import query_rows, write_parts
from dataflow.interactions import counts_by
from dataflow.split import Cuts
from dataflow.sql import render
from dataflow.stages import Stage
from dataflow.warehouse import Warehouse
from lockstep.config import DataSection
from lockstep.schema import Schema


def write_evaluation(
    warehouse: Warehouse, schema: Schema, data: DataSection, cuts: Cuts, split: str, destination: Path, work: Path
) -> tuple[Stage, Stage]:
    """Write one split's queries.

    The history is what the entity had before the cut; of an entity that is new after it, or that training never
    saw (validation only), its first `seed_events`. Targets are later candidates that were known before the cut.

    Args:
        split: `validation` or `test`.
        destination: the folder to make.

    Returns:
        The account of the split's entities and of its events.
    """
    events, judged = f"{split}_events", f"{split}_judged"
    entities = _judge(warehouse, data, cuts, split)
    past = past_values(schema, warehouse.schema("candidates_now"))
    query = struct(query_features(schema, warehouse.schema("queries_now"), moment="asked.event_time"))
    sql = render(
        "evaluation_queries",
        events=events,
        judged=judged,
        query=query,
        past=past,
        max_history=schema.max_history,
        counts=schema.counts("query"),
    )
    file = work / "evaluation.parquet"
    used = warehouse.export(sql, file)
    write_parts(file, destination, lambda batch: query_rows(batch, schema))
    verdicts = counts_by(warehouse, judged, "verdict")
    parts = counts_by(warehouse, events, "part")
    dropped = {name: rows for name, rows in verdicts.items() if name != "used"}
    kept = sum(parts.pop(name, 0) for name in ("history", "target"))
    return (
        Stage(f"{split} queries", entities, used, filtered=dropped).check(),
        Stage(f"{split} events", kept + sum(parts.values()), kept, filtered=parts).check(),
    )


def _judge(warehouse: Warehouse, data: DataSection, cuts: Cuts, split: str) -> int:
    """Create <split>_events and <split>_judged, and return the number of entities in the latter."""
    validation = split == "validation"
    cut = cuts.validation_from if validation else cuts.test_from
    parts = render(
        "evaluation_events",
        cut=cut,
        until=cuts.test_from if validation else None,
        continue_held_out=validation,
        known_before_validation=validation,
        seed_events=data.seed_events,
        max_targets=data.max_targets,
    )
    warehouse.create(f"{split}_events", parts)
    verdicts = render(
        "evaluation_judged", events=f"{split}_events", cut=cut, evaluation_queries=data.evaluation_queries
    )
    return warehouse.create(f"{split}_judged", verdicts)
