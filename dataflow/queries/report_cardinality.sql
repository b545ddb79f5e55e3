-- How many values a feature has in the training data: all, those that stand once, and how often they all stand.
-- Of no rows, COUNTIF is 0 on BigQuery and NULL on DuckDB.
SELECT
  COUNT(*) AS distinct_values,
  IFNULL(COUNTIF(occurrences = 1), 0) AS once,
  IFNULL(SUM(occurrences), 0) AS occurrences
FROM (
{{ values }}
) AS counted
