-- What rows refer to by candidate_index: a row a candidate of the catalogue (or of numbered_candidates), in its order.
--   c_<feature>     its feature, where that is the same for all examples
--   past_<feature>  its element in a query's history feature
SELECT
  known.candidate_index,
  candidate.candidate_id
{% for name, value in candidate.items() %}
  , {{ value }} AS {{ ("c_" ~ name) | ident }}
{% endfor %}
{% for name, value in past.items() %}
  , {{ value }} AS {{ name | ident }}
{% endfor %}
FROM {{ known | ident }} AS known
JOIN candidates_now AS candidate ON candidate.candidate_id = known.candidate_id
ORDER BY candidate_index
