{# What training may know of events, whatever becomes of them as labels. #}
{% macro seen(stage="stage") %}
{{ stage }} IN ('example', 'too little history', 'too old')
{%- endmacro %}
