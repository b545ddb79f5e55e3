"""Where a threshold is passed, a sentence that says so and what to do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from dataflow.columns import EVENT_TIME
from dataflow.feature_report import thresholds as limit


@dataclass(frozen=True)
class Advice:
    """A sentence about a feature.

    Args:
        weight: 0 to 1, how much of the data it is about; orders the list.
    """

    tower: str
    feature: str
    weight: float
    text: str


def advise(features: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[Advice]:
    """All advice, the weightiest first.

    Args:
        features: the report's section, by tower and feature.
    """
    rules = (_coverage, _constant, _unknown, _vocabulary, _once, _hash, _numbers, _texts, _sequences, _vectors, _drift)
    found = [
        Advice(tower, name, weight, text)
        for tower, of in features.items()
        for name, feature in of.items()
        for rule in rules
        for weight, text in rule(feature)
    ]
    return sorted(found, key=lambda a: (-a.weight, a.tower, a.feature, a.text))


def percent(value: float) -> str:
    """A share in words.

    >>> percent(0.384), percent(0.0238), percent(0.01), percent(0.00001), percent(0.9996)
    ('38 %', '2.4 %', '1 %', 'under 0.1 %', 'over 99.9 %')
    """
    if 0 < value < 0.001:
        return "under 0.1 %"
    if 0.999 < value < 1:
        return "over 99.9 %"
    return f"{100 * value:.{1 if value < 0.1 or value > 0.99 else 0}f}".removesuffix(".0") + " %"


def _coverage(feature: Mapping[str, Any]) -> Iterator[tuple[float, str]]:
    there = feature["coverage"]["train"]
    columns = ", ".join(feature["columns"])
    if there == 0:
        yield 1.0, f"no training row has a value: look at the column {columns} in the source, or remove the feature"
    elif there is not None and there < limit.LOW_COVERAGE:
        yield 1 - there, f"only {percent(there)} of the training rows have a value: look at the column {columns}"


def _constant(feature: Mapping[str, Any]) -> Iterator[tuple[float, str]]:
    if feature["cardinality"] == 1 and feature["coverage"]["train"] == 1:
        yield 1.0, "has one value in all training rows: a tower learns nothing from it, remove it"


def _unknown(feature: Mapping[str, Any]) -> Iterator[tuple[float, str]]:
    found = feature.get("unknown", {}).get("validation", {}).get("occurrences")
    if found is None or found <= limit.UNKNOWN:
        return
    text = feature["type"] in ("text", "text_sequence")
    what = "tokens" if text else "values"
    vocabulary = feature["vocabulary"]
    if "limit" not in vocabulary:
        remedy = f"see {vocabulary['table']}, whose vocabulary it shares"
    else:
        remedy = _lower(vocabulary)
        if feature["type"] == "categorical":
            remedy += ", or use encoding = 'hash'"
        elif not text:
            remedy += ", and give the tower features that new ones have too (text, categories)"
    yield found, f"{percent(found)} of validation {what} are not in the vocabulary: {remedy}"


def _vocabulary(feature: Mapping[str, Any]) -> Iterator[tuple[float, str]]:
    vocabulary = feature.get("vocabulary", {})
    covered = vocabulary.get("covered")
    if covered is not None and 1 - covered > limit.UNCOVERED:
        yield 1 - covered, f"the vocabulary covers {percent(covered)} of the training occurrences: {_lower(vocabulary)}"


def _lower(vocabulary: Mapping[str, Any]) -> str:
    if vocabulary["size"] >= vocabulary["limit"]:
        return f"raise its size (now {vocabulary['limit']:,})"
    if vocabulary["min_count"] > 1:
        return f"lower min_count (now {vocabulary['min_count']})"
    return "the training data does not have them: train on newer data"


def _once(feature: Mapping[str, Any]) -> Iterator[tuple[float, str]]:
    once = feature.get("once")
    if once is None or once <= limit.ONCE or feature["type"] in ("text", "text_sequence"):
        return
    if feature.get("vocabulary", {}).get("min_count") != 1:
        return
    rarer = "set min_count = 2, so that they train the unknown row, which new values will use"
    if feature["type"] == "categorical":
        rarer += "; if they are phrases, type = 'text' learns from the words that they share"
    yield once / 2, f"{percent(once)} of its values occur once, too rarely to learn an embedding row: {rarer}"


def _hash(feature: Mapping[str, Any]) -> Iterator[tuple[float, str]]:
    found = feature.get("hash")
    if found is None or max(found["colliding"] or 0, found["expected"]) <= limit.COLLISIONS:
        return
    share = found["colliding"] or 0
    text = (
        f"hash with {found['bins']:,} bins: {percent(share)} of {found['values']:,} values collide (expected "
        f"{percent(found['expected'])}); {_legible(found['bins_for_goal']):,} bins would bring it under "
        f"{percent(found['goal'])}"
    )
    if found["values"] <= limit.FEW_VALUES:
        text += ", and encoding = 'lookup' has none at all"
    yield share, text


def _legible(bins: int) -> int:
    """Rounded up to two digits: 24,876 reads as 25,000."""
    unit = 10 ** max(len(str(bins)) - 2, 0)
    return -(-bins // unit) * unit


def _numbers(feature: Mapping[str, Any]) -> Iterator[tuple[float, str]]:
    found = feature.get("numbers")
    if found is None:
        return
    quantiles = found["quantiles"]
    skewed = quantiles["min"] >= 0 and quantiles["p50"] > 0 and quantiles["p99"] > limit.SKEW * quantiles["p50"]
    if skewed and not found["log"]:
        yield 0.5, f"the 99 % quantile is {quantiles['p99'] / quantiles['p50']:.0f} times the median: set log = true"


def _texts(feature: Mapping[str, Any]) -> Iterator[tuple[float, str]]:
    found = feature.get("tokens")
    if found is None:
        return
    if found["cut"] > limit.TEXT_CUT:
        yield (
            found["cut"],
            f"{percent(found['cut'])} of the texts are cut at {found['max_tokens']} tokens: raise max_tokens "
            f"(95 % of them have at most {found['p95']:.0f}), or lower ngrams",
        )
    distinct = feature["cardinality"]
    if distinct and distinct <= limit.FEW_TEXTS and feature.get("occurrences", 0) >= limit.TEXT_REPEATS * distinct:
        kind = "categorical" if feature["type"] == "text" else "id_sequence"
        yield 0.25, f"has only {distinct} different texts: type = '{kind}' gives each an embedding row of its own"


def _sequences(feature: Mapping[str, Any]) -> Iterator[tuple[float, str]]:
    found = feature.get("lengths")
    if found is not None and (found["cut"] or 0) > limit.SEQUENCE_CUT:
        yield found["cut"] / 2, f"{percent(found['cut'])} of the sequences are cut at max_length {found['max_length']}"


def _vectors(feature: Mapping[str, Any]) -> Iterator[tuple[float, str]]:
    found = feature.get("vectors")
    if found is None:
        return
    if found["wrong"]:
        yield (
            found["wrong"],
            f"{percent(found['wrong'])} of the vectors do not have {found['size']} finite numbers: mend the source",
        )
    if found["zero"]:
        yield found["zero"], f"{percent(found['zero'])} of the vectors are all zero: leave them out of the source"


def _drift(feature: Mapping[str, Any]) -> Iterator[tuple[float, str]]:
    found = feature["drift"]
    index = found["index"]
    if feature["columns"] == [EVENT_TIME]:
        return  # every validation query is asked at the cut or at an entity's first events: no drift of the data
    if index is None or index <= limit.DRIFT_LARGE or index <= found["by_chance"]:
        return
    worst = max(found["bins"], key=lambda of: (abs(of["validation"] - of["train"]), of["label"]))
    yield (
        min(index, 1.0) / 2,
        f"validation is distributed otherwise than training (stability index {index:.2f} over {found['over']}; most: "
        f"{worst['label']!r} {percent(worst['train'])} → {percent(worst['validation'])}): check that the column means "
        "the same at all times, or train on newer data ([data] max_age_days)",
    )
