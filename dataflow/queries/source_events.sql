-- The good events. A table has no order: without a position, events of one moment are ordered by their candidate.
SELECT
  query_id,
  candidate_id,
  event_time,
{% if positioned %}
  position,
{% else %}
  ROW_NUMBER() OVER (PARTITION BY query_id ORDER BY event_time, candidate_id) - 1 AS position,
{% endif %}
  engagement
FROM {{ judged | ident }}
WHERE fault = 0
