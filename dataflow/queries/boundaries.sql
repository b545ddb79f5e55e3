-- Where the buckets of a number begin, so that each holds about as many of its occurrences in the training data.
--   A bucket is never divided: where one value is more than a bucket's share, there are fewer buckets.
WITH counted AS (
{{ values }}
),
running AS (
  SELECT
    value,
    SUM(occurrences) OVER (ORDER BY value ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW) - occurrences AS below,
    SUM(occurrences) OVER () AS total
  FROM counted
  WHERE occurrences > 0
)
SELECT MIN(value) AS boundary
FROM running
GROUP BY FLOOR(below * {{ buckets | literal }} / total)
ORDER BY boundary
