"""Nearest-neighbour indexes that know their model version and take only embeddings that say theirs."""

from serving.index.base import Index, Neighbours
from serving.index.opening import open_index
from serving.index.restricts import Comparison, Restricts

__all__ = ["Comparison", "Index", "Neighbours", "Restricts", "open_index"]
