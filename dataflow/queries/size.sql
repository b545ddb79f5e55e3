-- The number of rows of a table.
SELECT COUNT(*) AS `rows`
FROM {{ table | ident }}
