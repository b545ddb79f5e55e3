-- The latest moment that leaves at least so many events at or after it.
WITH moments AS (
  SELECT event_time, COUNT(*) AS events
  FROM ordered_events
  GROUP BY event_time
),
remaining AS (
  SELECT event_time, SUM(events) OVER (ORDER BY event_time DESC) AS at_or_after
  FROM moments
)
SELECT MAX(event_time) AS moment
FROM remaining
WHERE at_or_after >= {{ events | literal }}
