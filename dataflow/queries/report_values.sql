-- The values of a feature in the training data, with what their rows weigh, in no order.
WITH weighed AS (
{% if sequence %}
  SELECT element AS value, source.weight
  FROM {{ source }} AS source
  CROSS JOIN UNNEST(source.value) AS element
{% else %}
  SELECT value, weight
  FROM {{ source }}
{% endif %}
)
SELECT value, SUM(weight) AS occurrences
FROM weighed
WHERE value IS NOT NULL AND {{ "NOT IS_NAN(value) AND NOT IS_INF(value)" if number else "value <> ''" }}
GROUP BY value
