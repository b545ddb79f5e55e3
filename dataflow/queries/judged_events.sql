-- Every event with what becomes of it: nothing is dropped here, so that all rows can be counted.
--   copies      tells identical rows apart: one of them counts
--   occurrence  1 for every row of the first time that an entity took a candidate; a rank, for identical rows must
--               share it, or each could be discarded in favour of the other
WITH numbered AS (
  SELECT
    event.query_id,
    event.candidate_id,
    event.event_time,
    event.position,
    candidate.candidate_id IS NULL AS unknown,
    ROW_NUMBER() OVER (
      PARTITION BY event.query_id, event.candidate_id, event.event_time, event.position
      ORDER BY event.candidate_id
    ) AS copies,
    RANK() OVER (
      PARTITION BY event.query_id, event.candidate_id
      ORDER BY event.event_time, event.position
    ) AS occurrence
  FROM events AS event
  LEFT JOIN candidates_now AS candidate ON candidate.candidate_id = event.candidate_id
)
SELECT
  query_id,
  candidate_id,
  event_time,
  position,
  CASE
    WHEN unknown THEN {{ unknown_candidate | literal }}
    WHEN copies > 1 THEN {{ duplicate_event | literal }}
    WHEN occurrence > 1 THEN 'repeat'
    ELSE 'used'
  END AS verdict
FROM numbered
