"""A warm start takes rows by vocabulary entry, whatever their ids have become."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from lockstep.errors import InputMismatchError, VersionMismatchError
from lockstep.model_sections import ModelSection
from lockstep.registry import Part, Registry, Release
from lockstep.storage import open_root
from lockstep.tags import Artifact, Kind, open_artifact, read_tag, write_tag
from lockstep.version import ModelVersion, ReleaseId
from tests.unit.trainer_artifacts import SCHEMA
from trainer.encoding import EncodedFeatures, read_encoded_features
from trainer.towers import TowerNetwork, build_towers
from trainer.warm_start import WarmStart

MODEL = ModelSection(embedding_dim=8, feature_dim=4, query={"hidden": [6]}, candidate={"hidden": [6, 5]})


def preprocessing(path: Path, vocabularies: dict[str, list[str]], run: str = "run-1", length: int = 3) -> Artifact:
    """What a warm start reads of a preprocessing artifact; `shop` is hashed to 10 bins, so it has no vocabulary."""
    (path / "vocabulary").mkdir(parents=True)
    for table, entries in vocabularies.items():
        (path / "vocabulary" / f"{table}.txt").write_text("".join(entry + "\n" for entry in entries))

    def feature(name: str, kind: str, table: str, size: int, length: int = 1) -> dict[str, object]:
        return {"name": name, "type": kind, "dtype": "int64", "length": length, "elements": length, "table": table,
                "size": size}  # fmt: skip

    tracks = len(vocabularies["track"]) + 2
    features = {
        "query": [feature("history", "id_sequence", "track", tracks, length), feature("shop", "id", "shop", 12)],
        "candidate": [feature("track", "id", "track", tracks)],
    }
    (path / "features.json").write_text(json.dumps(features))
    write_tag(path, Kind.PREPROCESSING, run=run, schema=SCHEMA.digest, rows=1)
    return open_artifact(path, Kind.PREPROCESSING)


def towers(artifact: Artifact, seed: int) -> tuple[EncodedFeatures, tuple[TowerNetwork, TowerNetwork]]:
    features = read_encoded_features(artifact / "features.json")
    return features, build_towers(features, MODEL, seed)


def export(root: Path, built: tuple[TowerNetwork, TowerNetwork], version: int = 3, run: str = "run-1") -> None:
    for tower, kind in zip(built, (Kind.QUERY_TOWER, Kind.CANDIDATE_TOWER), strict=True):
        module = tf.Module()
        module.weights = list(tower.variables)
        tf.saved_model.save(module, str(root / kind.value / "saved_model"))
        facts = {"run": run, "schema": SCHEMA.digest, "rows": 1}
        write_tag(root / kind.value, kind, model_version=ModelVersion(version), **facts)


def open_warm_start(root: Path) -> WarmStart:
    return WarmStart.open(root / "query_tower", root / "candidate_tower", root / "preprocessing")


def by_name(built: tuple[TowerNetwork, TowerNetwork]) -> dict[str, np.ndarray]:
    """The tables by name, and the other weights by tower and place."""
    found = {}
    for tower in built:
        for place, variable in enumerate(tower.trainable_variables):
            table = "table_" in variable.name
            found[variable.name.split("/")[-2] if table else f"{tower.name}{place}"] = variable.numpy()
    return found


@pytest.fixture(scope="module")
def earlier(tmp_path_factory) -> tuple[Path, dict[str, np.ndarray]]:
    root = tmp_path_factory.mktemp("earlier")
    made = preprocessing(root / "preprocessing", {"track": ["a", "b", "c\\n"]})
    _, built = towers(made, seed=1)
    export(root, built)
    return root, by_name(built)


def test_rows_follow_their_entries_and_new_ones_begin_afresh(earlier, tmp_path):
    root, old = earlier
    grown = preprocessing(tmp_path / "p", {"track": ["new", "c\\n", "a", "newer"]}, run="run-2")
    features, built = towers(grown, seed=99)
    cold = by_name(built)
    assert open_warm_start(root).apply(built, features, grown) == {"track": 2, "shop": 12}
    warm = by_name(built)
    # Ids: 0 missing, 1 unknown, then the vocabulary: c was 4 and is 3, a was 2 and is 4; b is gone.
    np.testing.assert_array_equal(warm["table_track"][[0, 1, 3, 4]], old["table_track"][[0, 1, 4, 2]])
    np.testing.assert_array_equal(warm["table_track"][[2, 5]], cold["table_track"][[2, 5]])
    np.testing.assert_array_equal(warm["table_shop"], old["table_shop"])
    dense = sorted(set(warm) - {"table_track", "table_shop"})
    assert len(dense) == 10  # a kernel and a bias of two layers of the query tower, of three of the candidate's
    for name in dense:
        np.testing.assert_array_equal(warm[name], old[name])


def test_a_tower_of_other_features_takes_the_tables_alone(earlier, tmp_path):
    root, old = earlier
    longer = preprocessing(tmp_path / "p", {"track": ["a", "b", "c\\n"]}, length=4)
    features, built = towers(longer, seed=99)
    cold = by_name(built)
    open_warm_start(root).apply(built, features, longer)
    warm = by_name(built)
    np.testing.assert_array_equal(warm["table_track"], old["table_track"])
    for name in warm:
        if name.startswith("query_tower"):
            np.testing.assert_array_equal(warm[name], cold[name])
        elif name.startswith("candidate_tower"):
            np.testing.assert_array_equal(warm[name], old[name])


def test_towers_of_two_versions_are_refused(earlier, tmp_path):
    _, built = towers(open_artifact(earlier[0] / "preprocessing", Kind.PREPROCESSING), seed=1)
    export(tmp_path, built, version=4)
    with pytest.raises(VersionMismatchError, match=r"v3.*v4|v4.*v3"):
        WarmStart.open(earlier[0] / "query_tower", tmp_path / "candidate_tower", earlier[0] / "preprocessing")


def test_preprocessing_of_another_run_is_refused(earlier, tmp_path):
    other = preprocessing(tmp_path / "p", {"track": ["a"]}, run="run-9")
    with pytest.raises(InputMismatchError, match="run-9"):
        WarmStart.open(earlier[0] / "query_tower", earlier[0] / "candidate_tower", other.path)


def test_the_live_release_is_found_in_the_registry(earlier, tmp_path, caplog):
    root, _ = earlier
    storage = open_root(str(tmp_path))
    with caplog.at_level("INFO"):
        assert WarmStart.from_live_release(str(tmp_path), tmp_path / "cache") is None
    assert "a cold start" in caplog.text
    registry = Registry(storage)
    version = registry.mint_version("run-1", "test")
    kinds = (Kind.QUERY_TOWER, Kind.CANDIDATE_TOWER, Kind.PREPROCESSING)
    parts = {kind: Part(kind, str(root / kind.value), read_tag(root / kind.value).digest) for kind in kinds}
    registry.add_release(Release(ReleaseId(version, 1), "run-1", SCHEMA.digest, parts, {}))
    registry.publish(ReleaseId(version, 1), by="test", why="test")
    found = WarmStart.from_live_release(str(tmp_path), tmp_path / "cache")
    assert found is not None
    assert found.query_tower.path == root / "query_tower"
    assert found.inputs["warm_start_preprocessing"] == read_tag(root / "preprocessing")
