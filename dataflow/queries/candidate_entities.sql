-- The rows of entities/candidates: every candidate as it is now.
{% from "_counts.sql" import counts_at %}
{% if counts %}
WITH candidate_counts AS (
{{ counts_at("candidate_id", counts, day) }}
)
{% endif %}
SELECT
  candidate.candidate_id AS id,
  {{ candidate }} AS features,
  IFNULL({{ display }}, candidate.candidate_id) AS display,
{% for column, value in restricts.items() %}
  {{ value }} AS {{ column | ident }},
{% endfor %}
  {{ crowding }} AS crowding_tag
FROM candidates_now AS candidate
{% if counts %}
LEFT JOIN candidate_counts ON candidate_counts.candidate_id = candidate.candidate_id
{% endif %}
ORDER BY id
