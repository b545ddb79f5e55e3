-- Every candidate with its place among all of them by id, from 0: what histories of entities name candidates by.
SELECT candidate_id, ROW_NUMBER() OVER (ORDER BY candidate_id) - 1 AS candidate_index
FROM candidates_now
