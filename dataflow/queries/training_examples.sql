-- One row a training example: a label and what was known strictly before it. In any order: the records are ordered
-- by order_hash when they are written.
{% if past %}
WITH past AS (
  -- What lies before each place; an example takes it at its first_place, so events of its own moment stay out.
  SELECT
    event.query_id,
    event.place
{% for name, value in past.items() %}
    , ARRAY_AGG({{ value }}) OVER (
      PARTITION BY event.query_id ORDER BY event.place
      ROWS BETWEEN {{ max_history | literal }} PRECEDING AND 1 PRECEDING
    ) AS {{ name | ident }}
{% endfor %}
  FROM staged_events AS event
  JOIN candidates_now AS candidate ON candidate.candidate_id = event.candidate_id
  WHERE event.stage IN ('example', 'too little history')
)
{% endif %}
SELECT
  label.query_id,
  label.candidate_id,
  {{ query }} AS query,
  {{ candidate }} AS candidate,
  catalogue.candidate_index,
  catalogue.probability AS sampling_probability,
  (UNIX_MICROS({{ newest | literal }}) - UNIX_MICROS(label.event_time)) / 86400000000 AS age_days,
  CAST(
    CONCAT('0x', SUBSTR(TO_HEX(MD5(CONCAT({{ seed | string | literal }}, ' ', label.query_id, ' ', label.candidate_id))), 1, 15))
    AS INT64
  ) AS order_hash
FROM staged_events AS label
JOIN catalogue ON catalogue.candidate_id = label.candidate_id
JOIN candidates_now AS candidate ON candidate.candidate_id = label.candidate_id
JOIN queries_now AS entity ON entity.query_id = label.query_id
{% if past %}
JOIN past ON past.query_id = label.query_id AND past.place = label.first_place
{% endif %}
WHERE label.stage = 'example'
