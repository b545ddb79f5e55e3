-- Some rows of one fault, as they were found, for the dead-letter file.
SELECT found
FROM {{ judged | ident }}
WHERE fault = {{ fault | literal }}
ORDER BY {{ id | ident }}
LIMIT {{ limit | literal }}
