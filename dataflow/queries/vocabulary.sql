-- The values of a feature in the training data, most frequent first.
--   entities  rows of the table that have the value
--   events    what those rows weigh: training events of a candidate, examples of a query entity
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
SELECT value, COUNT(*) AS entities, SUM(weight) AS events
FROM weighed
WHERE value IS NOT NULL AND value <> ''
GROUP BY value
HAVING {{ counted | ident }} >= {{ min_count | literal }}
ORDER BY {{ counted | ident }} DESC, events DESC, value
{% if limit is not none %}
LIMIT {{ limit | literal }}
{% endif %}
