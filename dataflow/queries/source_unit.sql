-- How many moments of a column of whole numbers lie between two moments, for each unit.
SELECT
{% for unit, (low, high) in ranges.items() %}
  COUNTIF({{ column }} >= {{ low | literal }} AND {{ column }} < {{ high | literal }}) AS {{ unit | ident }},
{% endfor %}
  COUNT({{ column }}) AS present
FROM {{ table | ident }} AS source_row
