-- The rows of entities/popular.parquet: by events of the last 30 days of the data, then of all time.
WITH counted AS (
  SELECT
    candidate_id,
    COUNTIF(event_time >= {{ popular_from | literal }}) AS recent,
    COUNT(*) AS ever
  FROM ordered_events
  GROUP BY candidate_id
)
SELECT
  counted.candidate_id AS id,
  counted.recent AS count,
{% for column, value in restricts.items() %}
  {{ value }} AS {{ column | ident }},
{% endfor %}
  {{ crowding }} AS crowding_tag,
  counted.ever
FROM counted
JOIN candidates_now AS candidate ON candidate.candidate_id = counted.candidate_id
ORDER BY recent DESC, ever DESC, id
