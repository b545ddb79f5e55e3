"""Nearest-neighbour indexes that know their model version and take only embeddings that say theirs."""

from serving.index.base import Index, Neighbours, Restricts
from serving.index.opening import open_index

__all__ = ["Index", "Neighbours", "Restricts", "open_index"]
