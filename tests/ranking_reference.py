"""The plain way to measure a ranking: sort every row, count one query after the other."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def ranked(scores: np.ndarray) -> list[int]:
    """Best first, equal scores by index, those at -inf left out."""
    return sorted((i for i in range(len(scores)) if scores[i] != -np.inf), key=lambda i: (-scores[i], i))


def first_place(order: Sequence[int], targets: Sequence[int]) -> int | None:
    return next((place for place, i in enumerate(order) if i in set(targets)), None)


def measures(
    rows: np.ndarray, targets: list[list[int]], held_out: Sequence[int], ks: Sequence[int]
) -> dict[str, float]:
    """The means over the queries, and the share of the candidates that are shown."""
    sums: dict[str, float] = {}
    shown: dict[int, set[int]] = {k: set() for k in ks}

    def count(name: str, value: float) -> None:
        sums[name] = sums.get(name, 0.0) + value / len(rows)

    for scores, wanted, there in zip(rows, targets, held_out, strict=True):
        order = ranked(scores)
        for k in ks:
            hits = [place for place, i in enumerate(order[:k]) if i in wanted]
            ideal = sum(1 / math.log2(place + 2) for place in range(min(k, there)))
            count(f"recall@{k}", len(hits) / there)
            count(f"ndcg@{k}", sum(1 / math.log2(place + 2) for place in hits) / ideal)
            count(f"hit_rate@{k}", bool(hits))
            shown[k] |= set(order[:k])
        first = first_place(order, wanted)
        count("mrr", 0.0 if first is None else 1 / (first + 1))
        count("r_precision", len(set(order[:there]) & set(wanted)) / there)
        count("clicks", 51 if first is None or first >= 500 else first // 10)
    return sums | {f"coverage@{k}": len(of) / rows.shape[1] for k, of in shown.items()}
