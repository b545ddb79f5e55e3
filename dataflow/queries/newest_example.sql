-- The moment of the newest training label.
SELECT MAX(event_time) AS newest
FROM staged_events
WHERE stage = 'example'
