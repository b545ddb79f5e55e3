-- What training may see of each entity: its events, one candidate once. What the baselines of the evaluation learn from.
--   query  a number of the entity, equal in all its rows, which stand together
{% from "_training.sql" import seen %}
WITH event AS (
  SELECT
    CAST(CONCAT('0x', SUBSTR(TO_HEX(MD5(staged_events.query_id)), 1, 15)) AS INT64) AS query,
    catalogue.candidate_index AS candidate,
    staged_events.place,
    (UNIX_MICROS({{ newest | literal }}) - UNIX_MICROS(staged_events.event_time)) / 86400000000 AS age_days
  FROM staged_events
  JOIN catalogue ON catalogue.candidate_id = staged_events.candidate_id
  WHERE {{ seen("staged_events.stage") }}
)
SELECT query, candidate, age_days
FROM event
WHERE MOD(query, 1000000) < {{ entities_of_million | literal }}
ORDER BY query, place
