-- The rows of examples/catalogue.parquet.
SELECT
  candidate_index,
  candidate_id AS id,
  labels AS count,
  popular_30d,
  popular_30d_validation,
  events_before_validation > 0 AS known_before_validation
FROM catalogue
ORDER BY candidate_index
