"""The account of rows: at every stage, rows in = rows used + dead-lettered by reason + filtered by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from lockstep.errors import DataError


@dataclass(frozen=True)
class Stage:
    """Rows that went into one stage and what became of them.

    Args:
        name: the stage.
        rows_in: rows that it was given.
        used: rows that it passed on.
        dead_lettered: bad rows, by reason; each is in the dead-letter file.
        filtered: good rows that are not wanted here, by name.
    """

    name: str
    rows_in: int
    used: int
    dead_lettered: Mapping[str, int] = field(default_factory=dict)
    filtered: Mapping[str, int] = field(default_factory=dict)

    def check(self) -> Stage:
        """Prove that no row vanished.

        Raises:
            DataError: the numbers do not add up.
        """
        dead, filtered = sum(self.dead_lettered.values()), sum(self.filtered.values())
        if self.rows_in != self.used + dead + filtered:
            raise DataError(
                f"stage {self.name!r}: {self.rows_in} rows came in, but {self.used} were used, {dead} dead-lettered "
                f"and {filtered} filtered: this is a defect of the data step, please report it"
            )
        return self

    def to_json(self) -> dict[str, Any]:
        """As it stands in report.json."""
        return asdict(self)
