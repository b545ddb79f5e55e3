-- The candidates known before the test cut, most frequent label first; candidate_index is the row's number from 0.
--   labels           training examples that have it as their label
--   events_before_validation, popular_30d_validation  without held-out entities, whose events are targets of validation
--   training_events  events that training may see, labels or not: what vocabularies and statistics weigh by
{% from "_training.sql" import seen %}
WITH counted AS (
  SELECT
    candidate_id,
    SUM(examples) AS labels,
    COUNTIF({{ seen() }}) AS training_events,
    COUNTIF(event_time < {{ validation_from | literal }} AND stage <> 'held out') AS events_before_validation,
    COUNTIF(
      event_time >= {{ popular_from | literal }} AND event_time < {{ test_from | literal }}
    ) AS popular_30d,
    COUNTIF(
      event_time >= {{ popular_from_validation | literal }} AND event_time < {{ validation_from | literal }}
      AND stage <> 'held out'
    ) AS popular_30d_validation
  FROM staged_events
  WHERE event_time < {{ test_from | literal }}
  GROUP BY candidate_id
)
SELECT
  counted.candidate_id,
  ROW_NUMBER() OVER (ORDER BY counted.labels DESC, counted.candidate_id) - 1 AS candidate_index,
  counted.labels,
  counted.training_events,
  counted.events_before_validation,
  counted.popular_30d,
  counted.popular_30d_validation
FROM counted
