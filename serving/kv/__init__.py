"""Key-value stores of query embeddings: for each entity its vectors of the last model versions."""

from __future__ import annotations

from pathlib import Path

from lockstep.config import KVSection
from serving.kv.store import Load, Published, QueryStore

__all__ = ["Load", "Published", "QueryStore", "open_store"]


def open_store(section: KVSection, kv_root: Path, *, create: bool = False) -> QueryStore:
    """Open the store that the configuration names.

    Args:
        kv_root: the folder of the embedded store; services ignore it.
        create: make the store where there is none; a reader does not.

    Raises:
        KVError: there is no store, or it cannot be opened.
    """
    from serving.kv.embedded import EmbeddedStore

    return EmbeddedStore(kv_root / "embedded", keep=section.keep, create=create)
