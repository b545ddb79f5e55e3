-- The rows of examples/validation and examples/test.
{% from "_past.sql" import past_of %}
WITH past AS (
{{ past_of("(SELECT * FROM " ~ events ~ " WHERE part = 'history')", past, max_history) }}
),
lists AS (
  SELECT query_id, part, ARRAY_AGG(candidate_id ORDER BY place) AS candidate_ids
  FROM {{ events | ident }}
  WHERE part IN ('history', 'target')
  GROUP BY query_id, part
)
SELECT
  asked.query_id AS id,
  {{ query }} AS features,
  history.candidate_ids AS history,
  target.candidate_ids AS targets
FROM {{ judged | ident }} AS asked
JOIN queries_now AS entity ON entity.query_id = asked.query_id
JOIN lists AS history ON history.query_id = asked.query_id AND history.part = 'history'
JOIN lists AS target ON target.query_id = asked.query_id AND target.part = 'target'
LEFT JOIN past ON past.query_id = asked.query_id
WHERE asked.verdict = 'used'
ORDER BY id
