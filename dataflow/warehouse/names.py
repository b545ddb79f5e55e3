"""Puts the full names of tables into a query, and leaves every other character of it as it was written.

Re-generating the SQL from its syntax tree would do the same, if no generator ever changed a meaning; cutting the names
out of the text leaves nothing to trust.
"""

from __future__ import annotations

from collections.abc import Callable

from sqlglot import exp

from dataflow.warehouse.guard import check_query
from lockstep.errors import DataError


def qualify(sql: str, full_name: Callable[[str], str]) -> str:
    """Check a query and replace the plain names of its tables.

    A table that has no alias gets its plain name as one, so that `events.query_id` still means something. The names
    of CTEs, and tables that are qualified already, stay.

    Args:
        full_name: from a plain name to the SQL of the table.

    Raises:
        UnsafeQueryError: the query is not portable.
        DataError: it is no SELECT.
    """
    query = check_query(sql)
    replaced = sql
    for table in sorted(_plain_tables(query), key=lambda table: -_start(table)):
        start, end = _start(table), table.this.meta["end"] + 1
        if sql[start:end].strip("`") != table.name:
            raise DataError(f"the name of the table {table.name!r} was not found in: {sql.strip()[:500]}")
        alias = "" if table.alias else f" AS `{table.name}`"
        replaced = replaced[:start] + full_name(table.name) + alias + replaced[end:]
    return replaced


def source_tables(query: exp.Expr) -> set[str]:
    """The plain and qualified names of the tables that a query reads; CTEs are none."""
    qualified = {".".join(part.name for part in table.parts) for table in query.find_all(exp.Table) if table.db}
    return qualified | {table.name for table in _plain_tables(query)}


def _plain_tables(query: exp.Expr) -> list[exp.Table]:
    tables = (table for table in query.find_all(exp.Table) if not table.db and isinstance(table.this, exp.Identifier))
    return [table for table in tables if not _is_cte(table)]


def _is_cte(table: exp.Table) -> bool:
    """Whether a WITH that is visible from where the table stands names it: BigQuery ignores case in such names."""
    name, below, node = table.name.lower(), table, table.parent
    while node is not None:
        if isinstance(node, exp.With):
            visible = node.expressions[: next(n for n, cte in enumerate(node.expressions) if cte is below)]
            below, node = node.parent, node.parent.parent  # the SELECT that this WITH belongs to sees no more
        else:
            clause = node.args.get("with_")
            visible = clause.expressions if clause is not None else []
            below, node = node, node.parent
        if any(cte.alias.lower() == name for cte in visible):
            return True
    return False


def _start(table: exp.Table) -> int:
    return int(table.this.meta["start"])
