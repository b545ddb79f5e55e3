-- How many training examples there are of each age, in whole days before the newest.
SELECT
  FLOOR((UNIX_MICROS({{ newest | literal }}) - UNIX_MICROS(event_time)) / 86400000000) AS age_days,
  SUM(examples) AS examples
FROM staged_events
WHERE stage = 'example'
GROUP BY age_days
ORDER BY age_days
