-- The candidates: the first row of each id.
SELECT *
FROM candidates
WHERE TRUE
QUALIFY ROW_NUMBER() OVER (PARTITION BY candidate_id ORDER BY `row_number`) = 1
