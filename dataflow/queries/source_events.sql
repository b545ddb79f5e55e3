-- The good events. Without a position, events of one moment are simultaneous.
SELECT
  query_id,
  candidate_id,
  event_time,
{% if positioned %}
  position,
{% else %}
  0 AS position,
{% endif %}
  engagement
FROM {{ judged | ident }}
WHERE fault = 0
