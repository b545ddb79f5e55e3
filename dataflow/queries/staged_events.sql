-- Every ordered event with its part in training: a label, or the reason why it is none.
SELECT
  query_id,
  candidate_id,
  event_time,
  place,
  first_place,
  CASE
    WHEN held_out THEN 'held out'
    WHEN event_time >= {{ validation_from | literal }} THEN 'not before validation'
    WHEN first_place <= {{ min_history | literal }} THEN 'too little history'
    ELSE 'example'
  END AS stage
FROM ordered_events
