-- The events of one verdict, for the dead-letter file.
SELECT query_id, candidate_id, event_time, position
FROM judged_events
WHERE verdict = {{ verdict | literal }}
ORDER BY query_id, event_time, position, candidate_id
LIMIT {{ limit | literal }}
