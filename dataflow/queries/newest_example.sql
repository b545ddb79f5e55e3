-- The moment of the newest training label, and the number of examples.
SELECT MAX(event_time) AS newest, SUM(examples) AS examples
FROM staged_events
WHERE stage = 'example'
