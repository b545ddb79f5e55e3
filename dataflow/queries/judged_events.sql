-- Every event with what becomes of it: nothing is dropped here, so that all rows can be counted.
--   low         not engaged enough to be a positive
--   copies      tells identical rows apart: the most engaged one counts
--   occurrence  1 for every row of the first time that an entity took a candidate; a rank, for identical rows must
--               share it, or each could be discarded in favour of the other
WITH known AS (
  SELECT
    event.query_id,
    event.candidate_id,
    event.event_time,
    event.position,
    event.engagement,
    candidate.candidate_id IS NULL AS unknown,
{% if min_engagement is none %}
    FALSE AS low
{% else %}
    IFNULL(event.engagement < {{ min_engagement | literal }}, TRUE) AS low
{% endif %}
  FROM events AS event
  LEFT JOIN candidates_now AS candidate ON candidate.candidate_id = event.candidate_id
),
numbered AS (
  SELECT
    *,
    ROW_NUMBER() OVER (
      PARTITION BY query_id, candidate_id, event_time, position
      ORDER BY engagement DESC
    ) AS copies,
    RANK() OVER (
      PARTITION BY query_id, candidate_id, low
      ORDER BY event_time, position
    ) AS occurrence
  FROM known
)
SELECT
  query_id,
  candidate_id,
  event_time,
  position,
  engagement,
  CASE
    WHEN unknown THEN {{ unknown_candidate | literal }}
    WHEN copies > 1 THEN {{ duplicate_event | literal }}
    WHEN low THEN 'low engagement'
    WHEN occurrence > 1 THEN 'repeat'
    ELSE 'used'
  END AS verdict
FROM numbered
