-- The size and the last moment of the data.
SELECT COUNT(*) AS events, MAX(event_time) AS newest
FROM ordered_events
