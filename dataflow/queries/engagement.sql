-- The mean of what the examples' weights are proportional to; NULL where no example has an engagement.
SELECT SUM({{ value }} * label.examples) / SUM(CASE WHEN label.engagement IS NULL THEN 0 ELSE label.examples END) AS mean
FROM staged_events AS label
WHERE label.stage = 'example'
