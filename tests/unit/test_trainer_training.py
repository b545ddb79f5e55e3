"""The training job on tiny records: it learns, resumes, exports, and refuses what does not belong together."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from lockstep.errors import CorruptArtifactError, IncompleteArtifactError, InputMismatchError, TrainingError
from lockstep.model_sections import ModelSection, TrainSection
from lockstep.schema import Schema
from lockstep.tags import Kind, open_artifact, read_tag, write_tag
from lockstep.towers import Tower
from lockstep.version import ModelVersion
from tests.unit.trainer_artifacts import (
    IDS,
    SCHEMA,
    TITLES,
    Artifacts,
    candidate_features,
    make_artifacts,
    query_features,
)
from trainer import task
from trainer.encoding import read_encoded_features
from trainer.input_pipeline import open_training_records
from trainer.loop import TrainingLoop, prepare_work
from trainer.towers import build_towers
from trainer.two_tower import TwoTowerModel

V7 = ModelVersion(7)
MODEL = ModelSection(embedding_dim=16, query={"hidden": []}, candidate={"hidden": [24]}, dropout=0.1)
TRAIN = TrainSection(batch_size=128, epochs=2, learning_rate=0.02, checkpoint_every_steps=10)


@dataclass(frozen=True)
class Trained:
    made: Artifacts
    root: Path
    model: TwoTowerModel


def start(made: Artifacts, root: Path, train: TrainSection = TRAIN, model: ModelSection = MODEL, version=V7):
    return task.run(
        examples=made.examples,
        preprocessing=made.preprocessing,
        query_tower=root / "query_tower",
        candidate_tower=root / "candidate_tower",
        work=root / "work",
        model_version=version,
        run_id="run-1",
        model=model,
        train=train,
    )


def fit(made: Artifacts, work: Path, train: TrainSection = TRAIN) -> TwoTowerModel:
    examples = open_artifact(made.examples, Kind.EXAMPLES)
    preprocessing = open_artifact(made.preprocessing, Kind.PREPROCESSING)
    return task.train_model(examples, preprocessing, work, MODEL, train)


def saved_steps(work: Path) -> list[int]:
    return sorted(int(path.stem.removeprefix("step-")) for path in (work / "checkpoints").glob("*.json"))


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Artifacts:
    return make_artifacts(tmp_path_factory.mktemp("made"))


@pytest.fixture(scope="module")
def trained(made, tmp_path_factory) -> Trained:
    root = tmp_path_factory.mktemp("trained")
    kept = []
    with pytest.MonkeyPatch.context() as patch:
        original = task.train_model
        patch.setattr(task, "train_model", lambda *args: kept.append(original(*args)) or kept[-1])
        start(made, root)
    return Trained(made, root, kept[0])


def test_training_lowers_the_loss(trained):
    features = read_encoded_features(trained.made.examples / "features.json")
    examples = open_artifact(trained.made.examples, Kind.EXAMPLES)
    records = open_training_records(examples, features, TRAIN.model_copy(update={"seed": 9}))
    fresh = TwoTowerModel(*build_towers(features, MODEL, 1), records.candidates, records.probability, MODEL, TRAIN)
    batch = next(iter(records.batches(0)))
    before, after = float(tf.function(fresh.compute_loss)(batch)), float(tf.function(trained.model.compute_loss)(batch))
    assert before > np.log(128) - 0.5  # knows nothing
    assert after < before - 1.2  # ln 6 = 1.8 would be all there is to know: which of six groups


def test_tags_carry_version_run_schema_and_inputs(trained):
    inputs = {
        "examples": read_tag(trained.made.examples).digest,
        "preprocessing": read_tag(trained.made.preprocessing).digest,
    }
    for kind in (Kind.QUERY_TOWER, Kind.CANDIDATE_TOWER):
        artifact = open_artifact(trained.root / kind.value, kind, model_version=V7)
        assert (artifact.tag.run, artifact.tag.schema, artifact.tag.rows) == ("run-1", SCHEMA.digest, 4_000)
        assert artifact.tag.inputs == inputs
        assert Schema.from_json((artifact / "schema.json").read_bytes()) == SCHEMA


def test_exported_towers_equal_the_trained_ones(trained):
    candidate = Tower.open(trained.root / "candidate_tower", Kind.CANDIDATE_TOWER, V7)
    exported = candidate.embed(candidate_features(list(IDS), list(TITLES)))
    encode = tf.saved_model.load(str(trained.made.preprocessing / "candidate")).signatures["serving_default"]
    encoded = encode(track=tf.constant(IDS), title=tf.constant(TITLES))
    np.testing.assert_allclose(exported.vectors, trained.model.candidate_tower(encoded), atol=1e-5)
    query = Tower.open(trained.root / "query_tower", Kind.QUERY_TOWER, V7)
    vectors = query.embed(query_features([["c001", "c002"]], [0.5])).vectors
    ids = {"history": tf.constant([[3, 4, 0, 0, 0]], tf.int64), "mood": tf.constant([[0.5]])}
    np.testing.assert_allclose(vectors, trained.model.query_tower(ids), atol=1e-5)


def test_the_graph_itself_stamps_its_version(trained):
    signature = tf.saved_model.load(str(trained.root / "query_tower" / "saved_model")).signatures["serving_default"]
    for rows in (1, 3):
        outputs = signature(history=tf.constant([["c001"]] * rows), mood=tf.constant([0.0] * rows))
        assert outputs["model_version"].dtype == tf.int64
        assert outputs["model_version"].numpy().tolist() == [7] * rows
        assert outputs["embedding"].shape == (rows, 16)


def test_unknown_and_missing_features_give_unit_vectors(trained):
    query = Tower.open(trained.root / "query_tower", Kind.QUERY_TOWER, V7)
    histories = [None, [], ["never seen"], ["c001", "", "c002"], ["c001"] * 50]
    found = query.embed(query_features(histories, [None, None, 1.0, float("nan"), 1e30]))
    candidate = Tower.open(trained.root / "candidate_tower", Kind.CANDIDATE_TOWER, V7)
    found_too = candidate.embed(candidate_features([None, "new", "c001", ""], [None, "GROUP1 ünknown", "", "x " * 999]))
    for vectors in (found.vectors, found_too.vectors):
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, rtol=1e-5)


def test_a_tower_needs_no_training_library_to_load(trained):
    script = """
import json, sys
from pathlib import Path
from lockstep.features import features_from_json
from lockstep.tags import Kind
from lockstep.towers import Tower
from lockstep.version import ModelVersion
tower = Tower.open(Path(sys.argv[1]), Kind.QUERY_TOWER, ModelVersion(7))
found = tower.embed(features_from_json(tower.schema, "query", {"history": ["c001", "c002"], "mood": 0.5}))
unwanted = [name for name in ("tensorflow_recommenders", "scann", "trainer") if name in sys.modules]
print(json.dumps({"vector": found.vectors[0].tolist(), "unwanted": unwanted}))
"""
    command = [sys.executable, "-c", script, str(trained.root / "query_tower")]
    answer = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    assert answer["unwanted"] == []
    ids = {"history": tf.constant([[3, 4, 0, 0, 0]], tf.int64), "mood": tf.constant([[0.5]])}
    np.testing.assert_allclose(answer["vector"], trained.model.query_tower(ids)[0], atol=1e-5)


def test_a_killed_run_ends_with_the_weights_of_one_that_was_not(trained, tmp_path):
    # 31 steps an epoch, a checkpoint every 10: killed at step 47, in the second epoch, it goes on from step 40.
    script = """
import os, signal, sys
from pathlib import Path
from tests.unit import test_trainer_training as test
from trainer import loop
look = loop.TrainingLoop._look
loop._STEPS_BETWEEN_LOOKS = 1
def dying(self, since, step, *rest, **force):
    if step == 47:
        os.kill(os.getpid(), signal.SIGKILL)
    return look(self, since, step, *rest, **force)
loop.TrainingLoop._look = dying
test.start(test.Artifacts(*map(Path, sys.argv[2:])), Path(sys.argv[1]))
"""
    made = trained.made
    paths = [str(path) for path in (tmp_path, made.examples, made.preprocessing, made.entities)]
    killed = subprocess.run([sys.executable, "-c", script, *paths], check=False, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    with pytest.raises(IncompleteArtifactError):
        read_tag(tmp_path / "query_tower")
    assert saved_steps(tmp_path / "work") == [30, 31, 40]
    resumed = fit(made, tmp_path / "work")
    for ours, theirs in zip(resumed.variables, trained.model.variables, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6, err_msg=ours.name)


def test_a_finished_training_is_not_repeated(trained, monkeypatch):
    monkeypatch.setattr(TrainingLoop, "_one_step", lambda self, batch: pytest.fail("trained again"))
    again = fit(trained.made, trained.root / "work")
    for ours, theirs in zip(again.variables, trained.model.variables, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_tensorboard_has_the_loss_of_the_steps(trained):
    losses = {}
    for file in (trained.root / "work" / "tensorboard").glob("events*"):
        for record in tf.data.TFRecordDataset(str(file)):
            event = tf.compat.v1.Event.FromString(record.numpy())
            for value in event.summary.value:
                if value.tag == "loss":
                    losses[event.step] = tf.make_ndarray(value.tensor)
    assert sorted(losses) == [10, 20, 30, 31, 40, 50, 60, 62]
    assert losses[62] < losses[10] - 1.0


def test_batches_depend_on_seed_and_epoch_alone_and_each_epoch_sees_each_record_once(made):
    examples = open_artifact(made.examples, Kind.EXAMPLES)
    features = read_encoded_features(made.examples / "features.json")
    records = open_training_records(examples, features, TrainSection(batch_size=500, seed=3))

    def moods(epoch: int, skip: int = 0) -> np.ndarray:
        return np.concatenate([b["query"]["mood"].numpy()[:, 0] for b in records.batches(epoch, skip)])

    first = moods(0)
    assert len(np.unique(first)) == 4_000 == records.rows
    np.testing.assert_array_equal(first, moods(0))
    np.testing.assert_array_equal(first[1_500:], moods(0, skip=3))
    assert not np.array_equal(first, moods(1))
    np.testing.assert_array_equal(np.sort(first), np.sort(moods(1)))


def test_a_loss_that_is_no_number_stops_the_training_without_a_checkpoint(made, tmp_path):
    with pytest.raises(TrainingError, match=r"lower \[train\] learning_rate \(1e\+30\)"):
        fit(made, tmp_path, TRAIN.model_copy(update={"learning_rate": 1e30}))
    assert saved_steps(tmp_path) == []


def test_no_examples_is_said(tmp_path):
    with pytest.raises(TrainingError, match="holds 0 training examples"):
        start(make_artifacts(tmp_path / "made", rows=0, queries=1), tmp_path)


def test_fewer_examples_than_a_batch_train_all_the_same(tmp_path):
    tag = start(make_artifacts(tmp_path / "made", rows=50, queries=1), tmp_path)
    assert (tag.kind, tag.model_version, tag.rows) == (Kind.QUERY_TOWER, 7, 50)


def test_a_tag_that_promises_more_records_than_there_are_is_found_out(made, tmp_path):
    features = read_encoded_features(made.examples / "features.json")
    records = open_training_records(open_artifact(made.examples, Kind.EXAMPLES), features, TRAIN)
    model = TwoTowerModel(*build_towers(features, MODEL, 1), records.candidates, records.probability, MODEL, TRAIN)
    more = replace(records, kept=5_000)
    with pytest.raises(TrainingError, match="epoch 1 ended after step 31 of 39"):
        TrainingLoop(model, more, TRAIN, tmp_path).run()


def test_inputs_of_two_runs_are_refused(made, tmp_path):
    other = make_artifacts(tmp_path / "other", rows=100, queries=1, run="run-2")
    mixed = Artifacts(made.examples, other.preprocessing, made.entities)
    with pytest.raises(InputMismatchError, match=r"the run of examples .* is run-1, but of preprocessing .* run-2"):
        start(mixed, tmp_path)
    assert not (tmp_path / "query_tower").exists()


def test_inputs_of_two_schemas_are_refused(made, tmp_path):
    other = make_artifacts(tmp_path / "other", rows=100, queries=1)
    write_tag(other.preprocessing, Kind.PREPROCESSING, run="run-1", schema="0" * 64, rows=1)
    with pytest.raises(InputMismatchError, match=rf"the schema of .* {SCHEMA.digest[:12]}, but .* 000000000000"):
        start(Artifacts(made.examples, other.preprocessing, made.entities), tmp_path)


def test_another_encoding_is_refused(made, tmp_path):
    other = make_artifacts(tmp_path / "other", rows=100, queries=1)
    features = json.loads((other.preprocessing / "features.json").read_text())
    features["query"][0]["length"] = 6
    (other.preprocessing / "features.json").write_text(json.dumps(features))
    write_tag(other.preprocessing, Kind.PREPROCESSING, run="run-1", schema=SCHEMA.digest, rows=1)
    with pytest.raises(InputMismatchError, match="encoding of query/history"):
        start(Artifacts(made.examples, other.preprocessing, made.entities), tmp_path)


def test_a_changed_byte_is_refused(tmp_path):
    made = make_artifacts(tmp_path / "made", rows=100, queries=1)
    shard = next((made.examples / "train").iterdir())
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(bytes(data))
    with pytest.raises(CorruptArtifactError, match="part-0000"):
        start(made, tmp_path)


def test_checkpoints_of_other_settings_are_not_resumed(tmp_path):
    prepare_work(tmp_path / "work", "first")
    checkpoint = tmp_path / "work" / "checkpoints" / "checkpoint"
    checkpoint.parent.mkdir()
    checkpoint.touch()
    prepare_work(tmp_path / "work", "first")
    assert checkpoint.exists()
    prepare_work(tmp_path / "work", "second")
    assert not checkpoint.exists()
    assert (tmp_path / "work" / "fingerprint").read_text() == "second"
