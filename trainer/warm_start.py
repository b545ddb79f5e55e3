"""Begin a training with the weights of an earlier model version, whose vocabularies may have been smaller.

What an id means is its vocabulary's business: rows of the tables are taken over by vocabulary entry, never by id.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import tensorflow as tf
from numpy.typing import NDArray

from lockstep.registry import Registry
from lockstep.storage import open_root
from lockstep.tags import Artifact, Kind, Tag, open_artifact
from trainer.encoding import SIDES, EncodedFeature, EncodedFeatures, Side, check_same_origin, read_encoded_features
from trainer.towers import TowerNetwork

_log = logging.getLogger(__name__)
_TABLE = re.compile(r"table_([^/]+)/")
_KINDS = (Kind.QUERY_TOWER, Kind.CANDIDATE_TOWER, Kind.PREPROCESSING)
_FIRST_ID = 2
"""Ids 0 (missing) and 1 (unknown) are in every table; the vocabulary follows."""


@dataclass(frozen=True)
class WarmStart:
    """The artifacts of the earlier version: its towers, and the preprocessing that they were trained with."""

    query_tower: Artifact
    candidate_tower: Artifact
    preprocessing: Artifact

    @classmethod
    def open(cls, query_tower: Path, candidate_tower: Path, preprocessing: Path) -> WarmStart:
        """Check the artifacts of one version.

        Raises:
            VersionMismatchError: the towers are of two versions.
            InputMismatchError: the preprocessing is of another run.
        """
        query = open_artifact(query_tower, Kind.QUERY_TOWER)
        candidate = open_artifact(candidate_tower, Kind.CANDIDATE_TOWER, model_version=query.tag.model_version)
        earlier = open_artifact(preprocessing, Kind.PREPROCESSING)
        check_same_origin(earlier, query)
        return cls(query, candidate, earlier)

    @classmethod
    def from_live_release(cls, root: str, cache: Path) -> WarmStart | None:
        """The towers of the live release; None, and a line that says so, where nothing is live yet.

        Args:
            root: the folder or gs:// prefix that holds the registry.
            cache: where copies go of what is not on a local path.

        Raises:
            ArtifactError: a part of the release is not what its manifest says.
        """
        storage = open_root(root)
        registry = Registry(storage)
        live = registry.serving().live
        if live is None:
            _log.info("no release is live in %s: a cold start", root)
            return None
        parts = (registry.release(live).part(kind) for kind in _KINDS)
        return cls(*(open_artifact(storage.local_copy(p.uri, cache), p.kind, digest=p.digest) for p in parts))

    @property
    def inputs(self) -> dict[str, Tag]:
        """The tags by role, for the tags of what begins with them."""
        return {
            "warm_start_query_tower": self.query_tower.tag,
            "warm_start_candidate_tower": self.candidate_tower.tag,
            "warm_start_preprocessing": self.preprocessing.tag,
        }

    def apply(
        self, towers: tuple[TowerNetwork, TowerNetwork], features: EncodedFeatures, preprocessing: Artifact
    ) -> dict[str, int]:
        """Take over what the earlier version has learnt.

        A table's rows follow its vocabulary; an entry that the earlier one did not have begins afresh, as on a cold
        start: its features say more about it than the row of all that was unknown. The weights above the tables are
        taken where the tower's features are the same and the shapes agree.

        Args:
            towers: query and candidate tower, built; changed in place.
            preprocessing: what they are to be trained with.

        Returns:
            table -> vocabulary entries whose rows were taken.
        """
        before = read_encoded_features(self.preprocessing / "features.json")
        rows: dict[str, int] = {}
        dense = 0
        for side, tower, artifact in zip(SIDES, towers, (self.query_tower, self.candidate_tower), strict=True):
            earlier = {v.name: v for v in tf.saved_model.load(str(artifact / "saved_model")).weights}
            same = _layout(before, side) == _layout(features, side)
            for variable in tower.trainable_variables:
                table, name = _TABLE.match(variable.name), variable.name
                if name not in earlier:
                    continue
                if table is not None:
                    if table[1] not in rows:  # shared tables are in both towers
                        rows[table[1]] = self._take_rows(table[1], earlier[name], variable, preprocessing)
                elif same and earlier[name].shape == variable.shape:
                    variable.assign(earlier[name])
                    dense += 1
        taken = ", ".join(f"{count} rows of {table}" for table, count in sorted(rows.items()))
        _log.info("warm start from %s: %s, %d dense weights", self.query_tower.tag.model_version, taken, dense)
        return rows

    def _take_rows(self, table: str, earlier: tf.Variable, variable: tf.Variable, preprocessing: Artifact) -> int:
        theirs, ours = _vocabulary(self.preprocessing, table), _vocabulary(preprocessing, table)
        if earlier.shape[1] != variable.shape[1] or (theirs is None) != (ours is None):
            return 0
        if theirs is None or ours is None:  # hashed: a bin is a bin as long as there are as many
            if earlier.shape != variable.shape:
                return 0
            variable.assign(earlier)
            return int(variable.shape[0])
        found = pc.index_in(ours, value_set=theirs)
        known = np.flatnonzero(found.is_valid().to_numpy(zero_copy_only=False))
        places: NDArray[np.int64] = found.drop_null().to_numpy().astype(np.int64)
        weights, old = variable.numpy(), earlier.numpy()
        weights[:_FIRST_ID] = old[:_FIRST_ID]
        weights[known + _FIRST_ID] = old[places + _FIRST_ID]
        variable.assign(weights)
        return len(known)


def _layout(features: EncodedFeatures, side: Side) -> list[EncodedFeature]:
    """What decides the meaning of a tower's weights: its features, whatever their vocabularies' sizes."""
    return [replace(feature, size=None) for feature in features.side(side)]


def _vocabulary(preprocessing: Artifact, table: str) -> pa.Array | None:
    path = preprocessing / f"vocabulary/{table}.txt"
    if not path.exists():
        return None
    return pa.array(path.read_bytes().split(b"\n")[:-1], pa.binary())
