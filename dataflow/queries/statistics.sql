-- Mean and standard deviation of a number in the training data, after the logarithm where it is wanted.
WITH weighed AS (
{% if sequence %}
  SELECT element AS value, source.weight
  FROM {{ source }} AS source
  CROSS JOIN UNNEST(source.value) AS element
{% else %}
  SELECT value, weight
  FROM {{ source }}
{% endif %}
),
present AS (
  SELECT
    {{ "SIGN(value) * LN(1 + ABS(value))" if log else "value" }} AS value,
    weight
  FROM weighed
  WHERE value IS NOT NULL AND NOT IS_NAN(value) AND NOT IS_INF(value)
),
centre AS (
  SELECT SUM(value * weight) / SUM(weight) AS mean, SUM(weight) AS weight
  FROM present
)
SELECT
  centre.mean,
  SQRT(SUM((present.value - centre.mean) * (present.value - centre.mean) * present.weight) / centre.weight)
    AS deviation,
  COUNT(*) AS present
FROM present
CROSS JOIN centre
GROUP BY centre.mean, centre.weight
