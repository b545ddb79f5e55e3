-- The number of distinct values of a column.
SELECT COUNT(DISTINCT {{ column | ident }}) AS `values`
FROM {{ table | ident }}
