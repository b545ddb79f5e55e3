-- The rows of entities/queries: every query entity as it is now.
--   q_<feature>  raw features, but for those of the history
--   past         indices of its last candidates (see numbered_candidates), oldest first
{% from "_counts.sql" import counts_at %}
WITH
{% if max_history %}
-- A window, not a GROUP BY: arrays that are aggregated by group do not leave memory.
arrays AS (
  SELECT
    event.query_id,
    ARRAY_AGG(numbered.candidate_index) OVER (
      PARTITION BY event.query_id ORDER BY event.place
      ROWS BETWEEN {{ (max_history - 1) | literal }} PRECEDING AND CURRENT ROW
    ) AS past,
    ROW_NUMBER() OVER (PARTITION BY event.query_id ORDER BY event.place DESC) AS recency
  FROM ordered_events AS event
  JOIN numbered_candidates AS numbered ON numbered.candidate_id = event.candidate_id
),
past AS (
  SELECT query_id, past
  FROM arrays
  WHERE recency = 1
),
{% endif %}
{% if counts %}
query_counts AS (
{{ counts_at("query_id", counts, day) }}
),
{% endif %}
entity AS (
  SELECT *
  FROM queries_now
)
SELECT
  entity.query_id AS id
{% for name, value in query.items() %}
  , {{ value }} AS {{ ("q_" ~ name) | ident }}
{% endfor %}
{% if max_history %}
  , past.past
{% endif %}
FROM entity
{% if max_history %}
LEFT JOIN past ON past.query_id = entity.query_id
{% endif %}
{% if counts %}
LEFT JOIN query_counts ON query_counts.query_id = entity.query_id
{% endif %}
ORDER BY id
