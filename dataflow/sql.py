"""Renders the queries of dataflow/queries: BigQuery SQL with Jinja placeholders.

A missing parameter is an error. Names go through `ident` and values through `literal`; fragments that
`dataflow.columns` derives from the schema are the only text that is put in as it is.
"""

from __future__ import annotations

from datetime import UTC, datetime
from functools import cache
from typing import Any

import jinja2

from lockstep.errors import DataError


def render(name: str, /, **parameters: Any) -> str:
    """The text of a query of dataflow/queries.

    Args:
        name: the file's name without `.sql`.
        parameters: what its placeholders stand for; every one must be given.

    Raises:
        DataError: a placeholder has no parameter.
    """
    try:
        return _environment().get_template(f"{name}.sql").render(**parameters)
    except jinja2.UndefinedError as error:
        raise DataError(f"the query {name} lacks a parameter: {error.message}") from error


def ident(name: str) -> str:
    """A quoted identifier."""
    if not name or any(character in name for character in "`\\\n\r\0"):
        raise DataError(f"{name!r} cannot be a column name in SQL: rename the column in [data.tables]")
    return f"`{name}`"


def literal(value: str | int | float | datetime) -> str:
    """A literal of BigQuery's dialect: text, number or moment.

    >>> literal("it's"), literal(3), literal(datetime(2020, 1, 1, tzinfo=UTC))
    ("'it\\\\'s'", '3', "TIMESTAMP '2020-01-01 00:00:00.000000+00:00'")
    """
    if isinstance(value, bool):
        return "TRUE" if value else "FALSE"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, datetime):
        return f"TIMESTAMP '{value.astimezone(UTC).strftime('%Y-%m-%d %H:%M:%S.%f')}+00:00'"
    escaped = value.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n").replace("\r", "\\r")
    return f"'{escaped}'"


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("dataflow", "queries"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,  # noqa: S701 - SQL, not HTML: values are quoted by `literal`
    )
    environment.filters.update(ident=ident, literal=literal)
    return environment
