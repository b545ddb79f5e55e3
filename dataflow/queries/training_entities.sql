-- The query entities that training sees, with the number of their examples.
SELECT query_id, SUM(examples) AS examples
FROM staged_events
WHERE stage = 'example'
GROUP BY query_id
