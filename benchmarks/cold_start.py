"""Cold start in the quality benchmark: whether what came after the cut is found by its features alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from quality_tasks import Asked

from trainer.evaluation.queries import Catalogue


class ColdStart:
    """Recall@100 of candidates first taken after the cut, ranked together with all that were known before it.

    Args:
        ids, titles: of every candidate.
    """

    def __init__(self, asked: Asked, ids: list[str], titles: list[str], catalogue: Catalogue) -> None:
        self.place = {candidate: number for number, candidate in enumerate(ids)}
        rows = [number for number, cold in enumerate(asked.cold) if cold]
        self.rows = np.array(rows)
        self.history = [np.array([self.place[c] for c in asked.history[row]]) for row in rows]
        self.targets = [np.unique([self.place[c] for c in asked.cold[row]]) for row in rows]
        taken = {candidate for of in asked.cold for candidate in of} | set(catalogue.ids.to_pylist())
        self.is_ranked = np.array([candidate in taken for candidate in ids])
        self.popular = np.zeros(len(ids), dtype=np.float32)
        self.popular[[self.place[c] for c in catalogue.ids.to_pylist()]] = catalogue.popular_30d
        self.is_warm = np.zeros(len(ids), dtype=bool)
        self.is_warm[[self.place[c] for c in catalogue.ids.to_pylist()]] = True
        self.words = [set((title or "").lower().split()) for title in titles]
        self.with_word: dict[str, list[int]] = {}
        for place, words in enumerate(self.words):
            for word in words:
                self.with_word.setdefault(word, []).append(place)
        self.category = np.array([(title or "?").lower().split()[-1:] or ["?"] for title in titles])[:, 0]

    def recall(self, scores: Callable[[int], NDArray[np.floating]]) -> float:
        """The mean over the queries of the share of their cold candidates in the top 100."""
        found = []
        for row, (history, targets) in enumerate(zip(self.history, self.targets, strict=True)):
            of_all = np.where(self.is_ranked, scores(row), -np.inf)
            of_all[history] = -np.inf
            top = np.argpartition(-of_all, 100)[:100]
            found.append(np.isin(targets, top).mean())
        return float(np.mean(found))

    def of_model(self, queries: NDArray[np.float32], candidates: NDArray[np.float32]) -> dict[str, float]:
        cold = len({int(target) for targets in self.targets for target in targets})
        found = self.recall(lambda row: candidates @ queries[self.rows[row]])
        return {"recall@100": found, "queries": len(self.rows), "candidates": cold}

    def of_baselines(self) -> dict[str, float]:
        """Two ways to rank what nobody has taken yet: a category is the last word of the title, such as `mug`."""
        of_category: dict[str, float] = {}
        for category in set(self.category):
            members = self.is_warm & (self.category == category)
            of_category[category] = float(self.popular[members].mean()) if members.any() else 0.0
        # What is new is as popular as its category is on average.
        of_new = np.array([of_category[category] for category in self.category])
        popular: NDArray[np.floating] = np.where(self.is_warm, self.popular, of_new)

        def within_category(row: int) -> NDArray[np.floating]:
            is_near = np.isin(self.category, self.category[self.history[row]])
            return np.where(is_near, popular + 1e6, popular)

        def similar_titles(row: int) -> NDArray[np.floating]:
            seeds = [self.words[place] for place in self.history[row]]
            overlap = np.zeros(len(self.words), dtype=np.float32)
            for of in seeds:
                for place in {place for word in of for place in self.with_word[word]}:
                    overlap[place] += len(self.words[place] & of) / len(self.words[place] | of)
            return overlap * (popular + 1e-3)

        return {
            "popularity within the category": self.recall(within_category),
            "similar titles x popularity": self.recall(similar_titles),
        }
