{#
The past of each label, by pairing: CTE bodies with the columns query_id, place (the label's), `past` (candidate
indices, in the order of the events), `newest` (the moment of the newest event in it), and for candidate_pairs
`partner`.
#}
{% from "_training.sql" import seen %}

{# What lies before each place; a label takes it at its first_place, so events of its own moment stay out. #}
{% macro before(max_history) %}
{% set earlier %}
OVER (
      PARTITION BY event.query_id ORDER BY event.place ROWS BETWEEN {{ max_history | literal }} PRECEDING AND 1 PRECEDING
    )
{%- endset %}
  SELECT
    event.query_id,
    event.place,
    ARRAY_AGG(catalogue.candidate_index) {{ earlier }} AS past,
    MAX(event.event_time) {{ earlier }} AS newest
  FROM staged_events AS event
  JOIN catalogue ON catalogue.candidate_id = event.candidate_id
  WHERE {{ seen("event.stage") }}
{% endmacro %}

{# The rest of the basket: of a long one, the nearest max_history, as many before as after where both are there. #}
{% macro around(max_history) %}
  SELECT
    label.query_id,
    label.place,
    ARRAY_AGG(catalogue.candidate_index ORDER BY event.place) AS past,
    MAX(event.event_time) AS newest
  FROM (
    SELECT
      query_id,
      place,
      GREATEST(1, LEAST(place - {{ (max_history // 2) | literal }}, basket - {{ max_history | literal }})) + step AS other
    FROM staged_events
    CROSS JOIN UNNEST(GENERATE_ARRAY(0, {{ max_history | literal }})) AS step
    WHERE stage = 'example'
  ) AS label
  JOIN staged_events AS event ON event.query_id = label.query_id AND event.place = label.other
  JOIN catalogue ON catalogue.candidate_id = event.candidate_id
  WHERE label.other <> label.place AND {{ seen("event.stage") }}
  GROUP BY label.query_id, label.place
{% endmacro %}

{# Each neighbour within the window, alone: an example for each. #}
{% macro neighbours(window) %}
  SELECT
    label.query_id,
    label.place,
    [catalogue.candidate_index] AS past,
    event.event_time AS newest,
    event.candidate_id AS partner
  FROM (
    SELECT query_id, place, place + step AS other
    FROM staged_events
    CROSS JOIN UNNEST(GENERATE_ARRAY({{ -window | literal }}, {{ window | literal }})) AS step
    WHERE stage = 'example' AND step <> 0
  ) AS label
  JOIN staged_events AS event ON event.query_id = label.query_id AND event.place = label.other
  JOIN catalogue ON catalogue.candidate_id = event.candidate_id
  WHERE {{ seen("event.stage") }}
{% endmacro %}
