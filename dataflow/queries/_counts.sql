{#
The events of the days before one day, by entity or candidate: a CTE body. Without those of held-out entities where these
are what is predicted.
#}
{% macro counts_at(key, windows, day, held_out=true) %}
  SELECT
    {{ key | ident }}
{% for days in windows %}
    , COUNTIF(day >= {{ (day - days) | literal }}) AS {{ ("events_" ~ days ~ "d") | ident }}
{% endfor %}
  FROM ordered_events
  WHERE day >= {{ (day - (windows | max)) | literal }} AND day < {{ day | literal }}{{ "" if held_out else " AND NOT held_out" }}
  GROUP BY {{ key | ident }}
{% endmacro %}
