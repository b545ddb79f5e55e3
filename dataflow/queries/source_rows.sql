-- Every row of a source table in Lockstep's columns, with the number of its first fault (0: none); a bad row is also
-- kept as it was found. Nothing is dropped here, so that all rows can be counted.
WITH judged AS (
  SELECT
{% for name, value in values.items() %}
    {{ value }} AS {{ name | ident }},
{% endfor %}
    CASE
{% for condition in faults %}
      WHEN {{ condition }} THEN {{ loop.index }}
{% endfor %}
      ELSE 0
    END AS fault,
    STRUCT(
{% for column in found %}
      source_row.{{ column | ident }} AS {{ column | ident }}{{ "," if not loop.last }}
{% endfor %}
    ) AS found
  FROM {{ table | ident }} AS source_row
)
SELECT
{% for name in values %}
  {{ name | ident }},
{% endfor %}
  fault,
  CASE WHEN fault > 0 THEN found END AS found
FROM judged
