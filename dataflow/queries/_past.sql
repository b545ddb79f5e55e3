{# The last events of each entity as arrays, oldest first: CTE bodies shared by the queries of whole entities. #}
{% macro past_of(source, past, max_history, condition="TRUE") %}
  SELECT
    event.query_id
{% for name, value in past.items() %}
    , ARRAY_AGG({{ value }} ORDER BY event.place) AS {{ name | ident }}
{% endfor %}
  FROM (
    SELECT query_id, candidate_id, place, ROW_NUMBER() OVER (PARTITION BY query_id ORDER BY place DESC) AS recency
    FROM {{ source }}
    WHERE {{ condition }}
  ) AS event
  JOIN candidates_now AS candidate ON candidate.candidate_id = event.candidate_id
  WHERE event.recency <= {{ max_history | literal }}
  GROUP BY event.query_id
{% endmacro %}
