-- The rows of examples/<split>_candidates: the catalogue's candidates as they were at a split's cut, in its order.
{% from "_counts.sql" import counts_at %}
WITH candidate_counts AS (
{{ counts_at("candidate_id", counts, day, held_out) }}
)
SELECT catalogue.candidate_index, catalogue.candidate_id AS id, {{ candidate }} AS features
FROM catalogue
JOIN candidates_now AS candidate ON candidate.candidate_id = catalogue.candidate_id
LEFT JOIN candidate_counts ON candidate_counts.candidate_id = catalogue.candidate_id
ORDER BY candidate_index
