-- For each day on which an entity or a candidate has an event: its events in so many days before that day.
-- Days are whole, so no event of the day itself is counted, nor the event that asks; and none of a held-out entity,
-- which training never sees.
WITH daily AS (
  SELECT {{ key | ident }}, day, COUNT(*) AS events
  FROM ordered_events
  WHERE NOT held_out
  GROUP BY {{ key | ident }}, day
)
SELECT
  {{ key | ident }},
  day
{% for days in windows %}
  , IFNULL(SUM(events) OVER (
    PARTITION BY {{ key | ident }} ORDER BY day RANGE BETWEEN {{ days | literal }} PRECEDING AND 1 PRECEDING
  ), 0) AS {{ ("events_" ~ days ~ "d") | ident }}
{% endfor %}
FROM daily
