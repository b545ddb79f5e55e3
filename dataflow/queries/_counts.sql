{# The events of the days before one day, by entity or candidate: a CTE body. #}
{% macro counts_at(key, windows, day) %}
  SELECT
    {{ key | ident }}
{% for days in windows %}
    , COUNTIF(day >= {{ (day - days) | literal }}) AS {{ ("events_" ~ days ~ "d") | ident }}
{% endfor %}
  FROM ordered_events
  WHERE day >= {{ (day - (windows | max)) | literal }} AND day < {{ day | literal }}
  GROUP BY {{ key | ident }}
{% endmacro %}
