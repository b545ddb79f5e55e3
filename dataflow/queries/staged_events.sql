-- Every ordered event with its part in training: a label, or the reason why it is none.
--   basket    the entity's training events; they are its first places, for the cut is a moment
--   examples  training examples that have the event as their label
WITH counted AS (
  SELECT
    *,
    COUNTIF(event_time < {{ validation_from | literal }}) OVER (PARTITION BY query_id) AS basket
  FROM ordered_events
),
staged AS (
  SELECT
    *,
    CASE
      WHEN held_out THEN 'held out'
      WHEN event_time >= {{ validation_from | literal }} THEN 'not before validation'
{% if pairing == "next_event" %}
      WHEN first_place - 1 < {{ min_history | literal }} THEN 'too little history'
{% else %}
      WHEN basket - 1 < {{ min_history | literal }} THEN 'too little history'
{% endif %}
{% if oldest is not none %}
      WHEN event_time < {{ oldest | literal }} THEN 'too old'
{% endif %}
      ELSE 'example'
    END AS stage
  FROM counted
)
SELECT
  query_id,
  candidate_id,
  event_time,
  engagement,
  place,
  first_place,
  day,
  basket,
  stage,
  CASE
    WHEN stage <> 'example' THEN 0
{% if pairing == "candidate_pairs" %}
    ELSE LEAST(place - 1, {{ window | literal }}) + LEAST(basket - place, {{ window | literal }})
{% else %}
    ELSE 1
{% endif %}
  END AS examples
FROM staged
