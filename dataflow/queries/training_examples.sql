-- One row a training example: a label, and what it is paired with. In any order: the records are ordered by order_hash
-- when they are written. Candidates are named by their index in the catalogue, whose rows (see known_candidates) hold
-- what features say of them; only what differs from example to example stands here.
--   q_<feature>, c_<feature>  raw features of the query and, where they count events, of the candidate
--   past                      indices of the candidates of the query's history, oldest first
{% from "_past_of_labels.sql" import before, around, neighbours %}
WITH
{% if max_history %}
past AS (
{% if pairing == "next_event" %}
{{ before(max_history) }}
{% elif pairing == "co_occurrence" %}
{{ around(max_history) }}
{% else %}
{{ neighbours(window) }}
{% endif %}
),
{% endif %}
label AS (
  SELECT *
  FROM staged_events
  WHERE stage = 'example'
),
example AS (
  SELECT
    label.query_id,
    catalogue.candidate_index,
    label.event_time,
{% if max_history %}
    past.past,
    past.newest AS newest_past_time,
{% endif %}
{% for name, value in query.items() %}
    {{ value }} AS {{ ("q_" ~ name) | ident }},
{% endfor %}
{% for name, value in candidate.items() %}
    {{ value }} AS {{ ("c_" ~ name) | ident }},
{% endfor %}
    (UNIX_MICROS({{ newest | literal }}) - UNIX_MICROS(label.event_time)) / 86400000000 AS age_days,
    {{ weight }} AS weight,
    CAST(
      CONCAT('0x', SUBSTR(TO_HEX(MD5(CONCAT(
        {{ seed | string | literal }}, ' ', label.query_id, ' ', label.candidate_id{{ ", ' ', past.partner" if pairing == "candidate_pairs" }}
      ))), 1, 15)) AS INT64
    ) AS order_hash
  FROM label
  JOIN catalogue ON catalogue.candidate_id = label.candidate_id
{% if balance %}
  JOIN training_entities AS counted ON counted.query_id = label.query_id
{% endif %}
{% if query %}
  JOIN queries_now AS entity ON entity.query_id = label.query_id
{% endif %}
{% if max_history %}
  {{ "LEFT " if pairing == "co_occurrence" }}JOIN past
    ON past.query_id = label.query_id AND past.place = {{ "label.first_place" if pairing == "next_event" else "label.place" }}
{% endif %}
{% if query_counts %}
  JOIN query_days AS query_counts ON query_counts.query_id = label.query_id AND query_counts.day = label.day
{% endif %}
{% if candidate %}
  JOIN candidate_days AS candidate_counts
    ON candidate_counts.candidate_id = label.candidate_id AND candidate_counts.day = label.day
{% endif %}
)
SELECT *, MOD(order_hash, {{ shards | literal }}) AS shard
FROM example
