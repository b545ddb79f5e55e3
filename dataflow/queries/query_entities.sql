-- The rows of entities/queries: every query entity as it is now.
{% from "_past.sql" import past_of %}
WITH past AS (
{{ past_of("ordered_events", past, max_history) }}
)
SELECT
  entity.query_id AS id,
  {{ query }} AS features,
  past.excluded AS history
FROM queries_now AS entity
LEFT JOIN past ON past.query_id = entity.query_id
ORDER BY id
