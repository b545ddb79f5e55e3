"""Sources: interactions, candidates and query entities in, three plain tables out (see `output`)."""

from __future__ import annotations

import logging
import time
from pathlib import Path

from dataflow.dead_letters import DeadLetters
from dataflow.sources import bigquery, mpd, synthetic, tables
from dataflow.sources.output import ID_COLUMNS, SourceCounts, SourceWriter
from dataflow.warehouse import Warehouse
from lockstep.config import DataSection
from lockstep.errors import ConfigError, DataError

__all__ = ["SourceCounts", "read_source", "read_tables"]

_log = logging.getLogger(__name__)


def read_tables(section: DataSection, warehouse: Warehouse, dead_letters: DeadLetters, work: Path) -> SourceCounts:
    """Make the tables events, candidates and queries in the warehouse, from files or from the tables of BigQuery.

    Args:
        section: [data].
        dead_letters: takes every row that cannot be used.
        work: a folder for what is read and written on the way.

    Returns:
        The counts, which add up: rows in = rows written + rows dead-lettered.
    """
    engaged = section.tables is not None and section.tables.events.engagement is not None
    wanted = section.min_engagement is not None or section.engagement_weight != "none"
    if wanted and not engaged and section.source != "synthetic":
        raise ConfigError(
            "[data] min_engagement and engagement_weight need a column to go by: set [data.tables.events] engagement"
        )
    if section.source == "bigquery":
        return bigquery.read_tables(section, warehouse, dead_letters, work)
    counts = read_source(section, work / "source", dead_letters)
    for table in ID_COLUMNS:
        warehouse.load(table, sorted((work / "source" / table).glob("*.parquet")))
    return counts


def read_source(section: DataSection, destination: Path, dead_letters: DeadLetters) -> SourceCounts:
    """Read the configured source into the tables that example generation starts from.

    Args:
        section: [data]; its `source` decides what is read from its `path`.
        destination: folder of the tables, made anew.
        dead_letters: takes every row that cannot be used.

    Returns:
        The counts, which add up: rows in = rows written + rows dead-lettered.

    Raises:
        DataError: a file or column is missing, or nothing could be read.
        ConfigError: the source's section is missing.
    """
    started = time.monotonic()
    before = dict(dead_letters.counts)
    with SourceWriter(destination) as writer:
        if section.source == "synthetic":
            synthetic.generate(section.synthetic, writer)
        elif section.source == "mpd":
            mpd.read(_folder(section), writer, dead_letters)
        else:
            if section.tables is None:
                raise ConfigError("[data] source = 'tables' needs the section [data.tables.events]: see configs/")
            tables.read(section.tables, _folder(section), writer, dead_letters)
    added = {reason: rows - before.get(reason, 0) for reason, rows in dead_letters.counts.items()}
    counts = writer.counts({reason: rows for reason, rows in added.items() if rows})
    counts.check()
    if not counts.events_in and not counts.dead_lettered:
        raise DataError(f"the source {section.source!r} at {section.path or '-'} holds no events: check [data] path")
    seconds = time.monotonic() - started
    _log.info(
        "read %d events (%d written), %d candidate and %d query rows in %.1f s, %.0f rows/s; dead letters: %s",
        *(counts.events_in, counts.events_written, counts.candidates_written, counts.queries_written),
        *(seconds, counts.rows_in / max(seconds, 1e-9), dict(counts.dead_lettered) or "none"),
    )
    return counts


def _folder(section: DataSection) -> Path:
    if not section.path:
        raise DataError(f"[data] path is not set: source = {section.source!r} reads a folder; set it or pass --data")
    folder = Path(section.path).expanduser()
    if not folder.is_dir():
        raise DataError(f"[data] path: there is no folder {folder.absolute()}; correct it or pass --data")
    return folder
