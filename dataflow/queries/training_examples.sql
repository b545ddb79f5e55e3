-- One row a training example: a label, and what it is paired with. In any order: the records are ordered by order_hash
-- when they are written.
{% from "_past_of_labels.sql" import before, around, neighbours %}
{% if past %}
WITH past AS (
{% if pairing == "next_event" %}
{{ before(past, max_history) }}
{% elif pairing == "co_occurrence" %}
{{ around(past, max_history) }}
{% else %}
{{ neighbours(past, window) }}
{% endif %}
),
{% else %}
WITH
{% endif %}
label AS (
  SELECT *
  FROM staged_events
  WHERE stage = 'example'
),
example AS (
  SELECT
    label.query_id,
    label.candidate_id,
    label.event_time,
    {{ "past.newest" if past else "CAST(NULL AS TIMESTAMP)" }} AS newest_history_time,
    {{ query }} AS query,
    {{ candidate }} AS candidate,
    catalogue.candidate_index,
    catalogue.probability AS sampling_probability,
    (UNIX_MICROS({{ newest | literal }}) - UNIX_MICROS(label.event_time)) / 86400000000 AS age_days,
    {{ weight }} AS weight,
    CAST(
      CONCAT('0x', SUBSTR(TO_HEX(MD5(CONCAT(
        {{ seed | string | literal }}, ' ', label.query_id, ' ', label.candidate_id{{ ", ' ', past.partner" if pairing == "candidate_pairs" }}
      ))), 1, 15)) AS INT64
    ) AS order_hash
  FROM label
  JOIN catalogue ON catalogue.candidate_id = label.candidate_id
  JOIN candidates_now AS candidate ON candidate.candidate_id = label.candidate_id
  JOIN queries_now AS entity ON entity.query_id = label.query_id
{% if past %}
  {{ "LEFT " if pairing == "co_occurrence" }}JOIN past
    ON past.query_id = label.query_id AND past.place = {{ "label.first_place" if pairing == "next_event" else "label.place" }}
{% endif %}
{% if query_counts %}
  JOIN query_days AS query_counts ON query_counts.query_id = label.query_id AND query_counts.day = label.day
{% endif %}
{% if candidate_counts %}
  JOIN candidate_days AS candidate_counts
    ON candidate_counts.candidate_id = label.candidate_id AND candidate_counts.day = label.day
{% endif %}
)
SELECT *, MOD(order_hash, {{ shards | literal }}) AS shard
FROM example
