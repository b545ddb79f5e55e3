"""The job load_kv: query embeddings of one release into the key-value store, published at the end.

<artifact>/            kind kv_load
  kv.json              {"backend", "namespace", "model_version", "snapshot", "rows", "dim"}
  tag.json             rows = entities loaded
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

from lockstep.config import KVSection
from lockstep.embeddings import read_embeddings
from lockstep.errors import CorruptArtifactError, DataError
from lockstep.storage import fresh_directory
from lockstep.tags import TAG_FILE, Artifact, Kind, Tag, open_artifact, write_tag
from lockstep.version import ModelVersion
from serving.index.vectors import check_vectors
from serving.kv import Load, Published, QueryStore, open_store

_LOG = logging.getLogger(__name__)


def run(
    *,
    query_embeddings: Path,
    kv_load: Path,
    kv_root: Path,
    model_version: ModelVersion,
    run_id: str,
    section: KVSection,
) -> Tag:
    """Load the query embeddings of one release and publish them under their version.

    Until the last step readers see what was there before; a version that is published stays so while a newer
    snapshot of it is loaded. Versions that no release needs any more are removed by publish_release, which
    knows them.

    Args:
        query_embeddings: artifact of this version.
        kv_load: the folder to write the receipt to.
        kv_root: the folder of the embedded store.

    Raises:
        ArtifactError: the embeddings are not those of this version.
        DataError: there are none, or a vector is not finite or not of unit length, or an id comes twice.
        KVError: the store cannot take them.
    """
    source = open_artifact(query_embeddings, Kind.QUERY_EMBEDDINGS, model_version=model_version)
    fresh_directory(kv_load)
    with open_store(section, kv_root, create=True) as store:
        published = _load(store, source, section.batch_size)
    _LOG.info("%s: %d entities published", published.namespace, published.rows)
    receipt = {
        "backend": section.backend,
        "namespace": published.namespace,
        "model_version": int(published.model_version),
        "snapshot": published.snapshot,
        "rows": published.rows,
        "dim": published.dim,
    }
    (kv_load / "kv.json").write_text(json.dumps(receipt, indent=1, sort_keys=True) + "\n")
    return write_tag(
        kv_load,
        Kind.KV_LOAD,
        run=run_id,
        schema=source.tag.schema,
        rows=published.rows,
        model_version=model_version,
        snapshot=source.tag.snapshot,
        inputs={"query_embeddings": source.tag},
    )


def _load(store: QueryStore, source: Artifact, batch_size: int) -> Published:
    version, snapshot = source.tag.model_version, source.tag.snapshot
    assert version is not None, "embeddings always have a version"
    assert snapshot is not None, "embeddings always have a snapshot"
    tower = (source.tag.inputs or {}).get("tower")
    if tower is None:
        raise CorruptArtifactError(source / TAG_FILE, "no input 'tower'", "the query tower's digest")
    load: Load | None = None
    rows = 0
    for batch, embeddings in read_embeddings(source, batch_size):
        ids, dim = batch.column("id"), embeddings.vectors.shape[1]
        check_vectors("query", embeddings, dim=dim, where=source.path, ids=ids.to_pylist)
        if load is None:
            load = store.begin(version, snapshot, dim, source.tag.digest, tower)
        load.put_many(ids.to_pylist(), embeddings)
        rows += len(batch)
        _LOG.info("%d of %d entities loaded", rows, source.tag.rows)
    if load is None:
        raise DataError(f"{source.path} holds no query entities: see the report of generate_examples")
    return load.publish(rows)
