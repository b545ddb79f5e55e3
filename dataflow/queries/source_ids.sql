-- The candidates or query entities of the events, where no table describes them.
SELECT {{ id | ident }}, ROW_NUMBER() OVER (PARTITION BY {{ id | ident }} ORDER BY {{ id | ident }}) - 1 AS `row_number`
FROM (
  SELECT {{ id | ident }}
  FROM events
  GROUP BY {{ id | ident }}
)
