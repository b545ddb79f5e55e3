-- The number of events at or after a moment.
SELECT COUNT(*) AS events
FROM ordered_events
WHERE event_time >= {{ moment | literal }}
