-- The query entities: every id of the query table (its first row) and every id that has an event.
WITH known AS (
  SELECT query_id FROM queries
  UNION DISTINCT
  SELECT query_id FROM ordered_events
),
described AS (
  SELECT *
  FROM queries
  WHERE TRUE
  QUALIFY ROW_NUMBER() OVER (PARTITION BY query_id ORDER BY `row_number`) = 1
)
SELECT
  known.query_id AS query_id
{% for column in columns %}
  , described.{{ column | ident }} AS {{ column | ident }}
{% endfor %}
FROM known
LEFT JOIN described ON described.query_id = known.query_id
