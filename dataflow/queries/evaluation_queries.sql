-- The rows of examples/validation and examples/test.
{% from "_past.sql" import past_of %}
WITH asked AS (
  SELECT query_id, event_time
  FROM {{ judged | ident }}
  WHERE verdict = 'used'
),
used AS (
  SELECT event.query_id, event.candidate_id, event.place, event.part
  FROM {{ events | ident }} AS event
  JOIN asked ON asked.query_id = event.query_id
  WHERE event.part IN ('history', 'target')
),
past AS (
{{ past_of("used", past, max_history, "part = 'history'") }}
),
lists AS (
  SELECT query_id, part, ARRAY_AGG(candidate_id ORDER BY place) AS candidate_ids
  FROM used
  GROUP BY query_id, part
)
SELECT
  asked.query_id AS id,
  {{ query }} AS features,
  history.candidate_ids AS history,
  target.candidate_ids AS targets
FROM asked
JOIN queries_now AS entity ON entity.query_id = asked.query_id
JOIN lists AS history ON history.query_id = asked.query_id AND history.part = 'history'
JOIN lists AS target ON target.query_id = asked.query_id AND target.part = 'target'
LEFT JOIN past ON past.query_id = asked.query_id
ORDER BY id
