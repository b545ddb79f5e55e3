"""Every number from which the report gives advice, and the sizes that it works with."""

from __future__ import annotations

LOW_COVERAGE = 0.5
"""A feature with a value in fewer rows than this deserves a look at its column."""
UNKNOWN = 0.2
"""Share of validation occurrences that are not in the vocabulary."""
UNCOVERED = 0.1
"""Share of training occurrences that the vocabulary leaves out."""
ONCE = 0.5
"""Share of a vocabulary's values that occur once: an embedding row that is trained once has learned nothing."""
COLLISIONS = 0.05
"""Share of hashed values that share their bin with another."""
COLLISION_GOAL = 0.01
"""The share that the advised number of bins would bring."""
FEW_VALUES = 10_000
"""Up to so many values a vocabulary is small enough that hashing saves nothing."""
FEW_TEXTS = 100
"""Up to so many different texts are categories, whose embedding needs no words ..."""
TEXT_REPEATS = 50
"""... if each stands on average in so many training events or examples."""
TEXT_CUT = 0.1
"""Share of texts that are longer than max_tokens."""
SEQUENCE_CUT = 0.5
"""Share of sequences that are longer than max_length."""
SKEW = 20.0
"""The 99 % quantile in medians, from which the logarithm of a positive number is the better scale."""
DRIFT_STABLE = 0.1
"""Population stability index below which a distribution is read as unchanged."""
DRIFT_LARGE = 0.25
"""Population stability index above which a distribution is read as another."""

ROWS = 50_000
"""At most so many validation rows are measured, evenly spaced."""
TOP = 20
"""The most frequent values that drift compares one by one; the rest is one bin."""
HISTOGRAM = 20
"""Bars of a number's histogram."""
SUMMARY_LINES = 10
"""Lines of advice that are logged; the page has all."""
