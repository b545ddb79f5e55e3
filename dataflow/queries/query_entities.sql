-- The rows of entities/queries: every query entity as it is now.
{% from "_past.sql" import past_of %}
{% from "_counts.sql" import counts_at %}
WITH past AS (
{{ past_of("ordered_events", past, max_history) }}
)
{% if counts %}
, query_counts AS (
{{ counts_at("query_id", counts, day) }}
)
{% endif %}
SELECT
  entity.query_id AS id,
  {{ query }} AS features,
  past.excluded AS history
FROM queries_now AS entity
LEFT JOIN past ON past.query_id = entity.query_id
{% if counts %}
LEFT JOIN query_counts ON query_counts.query_id = entity.query_id
{% endif %}
ORDER BY id
