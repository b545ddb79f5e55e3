-- How many rows of a table have each value of a column.
SELECT {{ column | ident }} AS name, COUNT(*) AS `rows`
FROM {{ table | ident }}
GROUP BY name
ORDER BY name
