-- The rows of entities/candidates: every candidate as it is now.
SELECT
  candidate.candidate_id AS id,
  {{ candidate }} AS features,
  IFNULL({{ display }}, candidate.candidate_id) AS display,
{% for namespace, value in restricts.items() %}
  {{ value }} AS {{ ("restrict_" ~ namespace) | ident }},
{% endfor %}
  {{ crowding }} AS crowding_tag
FROM candidates_now AS candidate
ORDER BY id
