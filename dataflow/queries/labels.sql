-- How often each candidate is a training label, by age in whole hours before the newest.
SELECT
  catalogue.candidate_index AS candidate,
  FLOOR((UNIX_MICROS({{ newest | literal }}) - UNIX_MICROS(staged_events.event_time)) / 3600000000) AS age_hours,
  SUM(staged_events.examples) AS examples
FROM staged_events
JOIN catalogue ON catalogue.candidate_id = staged_events.candidate_id
WHERE staged_events.stage = 'example'
GROUP BY candidate, age_hours
ORDER BY candidate, age_hours
