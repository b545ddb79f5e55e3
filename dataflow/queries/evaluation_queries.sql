-- The rows of examples/validation and examples/test.
--   cold  training has not seen a single event of the entity
{% from "_training.sql" import seen %}
{% from "_past.sql" import past_of %}
WITH asked AS (
  SELECT query_id, event_time{{ ", UNIX_DATE(DATE(event_time)) AS day" if counts }}
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
{% if counts %}
-- The events of the days before the day of the query.
, query_counts AS (
  SELECT
    asked.query_id
{% for days in counts %}
    , COUNTIF(event.day >= asked.day - {{ days | literal }}) AS {{ ("events_" ~ days ~ "d") | ident }}
{% endfor %}
  FROM asked
  JOIN ordered_events AS event ON event.query_id = asked.query_id AND event.day < asked.day
  GROUP BY asked.query_id
)
{% endif %}
, trained AS (
  SELECT DISTINCT query_id
  FROM staged_events
  WHERE {{ seen() }}
)
SELECT
  asked.query_id AS id,
  {{ query }} AS features,
  history.candidate_ids AS history,
  target.candidate_ids AS targets,
  trained.query_id IS NULL AS cold
FROM asked
JOIN queries_now AS entity ON entity.query_id = asked.query_id
JOIN lists AS history ON history.query_id = asked.query_id AND history.part = 'history'
JOIN lists AS target ON target.query_id = asked.query_id AND target.part = 'target'
LEFT JOIN trained ON trained.query_id = asked.query_id
LEFT JOIN past ON past.query_id = asked.query_id
{% if counts %}
LEFT JOIN query_counts ON query_counts.query_id = asked.query_id
{% endif %}
ORDER BY id
