-- The events of an evaluation split in their parts: history, targets, and targets that do not count.
--   seeded  the entity's first events are its history, because it is new after the cut; in validation also because
--           training has never seen it
WITH visible AS (
  SELECT
    query_id,
    candidate_id,
    event_time,
    place,
    {{ "held_out OR " if continue_held_out }}COUNTIF(event_time < {{ cut | literal }}) OVER (PARTITION BY query_id) = 0
      AS seeded
  FROM ordered_events
{% if until is not none %}
  WHERE event_time < {{ until | literal }}
{% endif %}
),
parted AS (
  SELECT
    visible.query_id,
    visible.candidate_id,
    visible.event_time,
    visible.place,
    visible.seeded,
    CASE
      WHEN visible.seeded AND visible.place <= {{ seed_events | literal }} THEN 'history'
      WHEN NOT visible.seeded AND visible.event_time < {{ cut | literal }} THEN 'history'
      WHEN catalogue.candidate_id IS NULL THEN 'not yet known'
      ELSE 'target'
    END AS part
  FROM visible
  LEFT JOIN catalogue
    ON catalogue.candidate_id = visible.candidate_id
{% if known_before_validation %}
    AND catalogue.events_before_validation > 0
{% endif %}
)
SELECT
  query_id,
  candidate_id,
  event_time,
  place,
  seeded,
  CASE
    WHEN part = 'target'
      AND ROW_NUMBER() OVER (PARTITION BY query_id, part ORDER BY place) > {{ max_targets | literal }}
      THEN 'over max_targets'
    ELSE part
  END AS part
FROM parted
