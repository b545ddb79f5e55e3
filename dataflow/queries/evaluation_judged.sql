-- The query entities of an evaluation split with what becomes of them, and the moment of their query.
WITH counted AS (
  SELECT
    query_id,
    COUNTIF(part = 'target') AS targets,
    COUNTIF(part <> 'history') AS later,
    CASE
      WHEN LOGICAL_OR(seeded) THEN MAX(CASE WHEN part = 'history' THEN event_time END)
      ELSE {{ cut | literal }}
    END AS event_time
  FROM {{ events | ident }}
  GROUP BY query_id
)
SELECT
  query_id,
  event_time,
  CASE
    WHEN later = 0 THEN 'no event to predict'
    WHEN targets = 0 THEN 'no target known before the cut'
    WHEN ROW_NUMBER() OVER (PARTITION BY targets > 0 ORDER BY TO_HEX(MD5(query_id)), query_id)
      > {{ evaluation_queries | literal }} THEN 'over evaluation_queries'
    ELSE 'used'
  END AS verdict
FROM counted
