-- The good candidates or query entities. Of several rows of an id the smallest values come first: a table has no order.
SELECT
  {{ id | ident }},
{% for column in columns %}
  {{ column | ident }},
{% endfor %}
  ROW_NUMBER() OVER (PARTITION BY {{ id | ident }} ORDER BY {{ order | join(", ") }}) - 1 AS `row_number`
FROM {{ judged | ident }}
WHERE fault = 0
