"""The feature report: what the features are in training and validation, what to change, and whether anything leaks.

It extends `report.json` of the artifact `examples`:

    features   {tower: {feature: see dataflow.feature_report.features}}
    advice     [{tower, feature, weight, text}], the weightiest first; thresholds: dataflow.feature_report.thresholds
    leaks      [{name, checked, violations, example, skipped}]
    sample     rows that were measured where not all were: {train, validation: {query, candidate}}

and `report.html` beside it says the same to people.
"""

from dataflow.feature_report.build import Artifacts, build, log_summary
from dataflow.feature_report.leaks import check_leaks, refuse_leaks
from dataflow.feature_report.page import render

__all__ = ["Artifacts", "build", "check_leaks", "log_summary", "refuse_leaks", "render"]
