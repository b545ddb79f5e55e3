-- How many rows of a judged source table have each fault.
SELECT fault, COUNT(*) AS `rows`
FROM {{ judged | ident }}
GROUP BY fault
ORDER BY fault
