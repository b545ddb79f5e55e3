-- The events that count, in order, within their query entity.
--   place        1, 2, 3 ... by (event_time, position), ties broken by id
--   first_place  the place of the first event of the same (event_time, position): what is strictly before an event
--                has a place below its first_place
--   day          whole days since 1970-01-01 (UTC)
--   held_out     training never sees this entity: by hash of its id
SELECT
  query_id,
  candidate_id,
  event_time,
  position,
  engagement,
  ROW_NUMBER() OVER (PARTITION BY query_id ORDER BY event_time, position, candidate_id) AS place,
  RANK() OVER (PARTITION BY query_id ORDER BY event_time, position) AS first_place,
  UNIX_DATE(DATE(event_time)) AS day,
  MOD(CAST(CONCAT('0x', SUBSTR(TO_HEX(MD5(query_id)), 1, 8)) AS INT64), {{ buckets | literal }})
    < {{ held_out_buckets | literal }} AS held_out
FROM judged_events
WHERE verdict = 'used'
