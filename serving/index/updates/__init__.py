"""Indexes whose candidates change while they are searched."""

from serving.index.updates.updatable import UpdatableIndex

__all__ = ["UpdatableIndex"]
