"""The loop around the steps: early stopping, averages, damaged checkpoints, NaN, TensorBoard, and the command line."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf
from click.testing import CliRunner
from tensorboard.plugins import projector

from lockstep.errors import TrainingError
from lockstep.model_sections import ModelSection, TrainSection
from lockstep.tags import Artifact, Kind, open_artifact, read_tag
from tests.unit.test_trainer_loss import Catalogue, Given
from tests.unit.trainer_artifacts import CANDIDATES, IDS, Artifacts, forget, make_artifacts
from trainer import task
from trainer.command import main
from trainer.encoding import read_encoded_features
from trainer.evaluation.queries import Queries
from trainer.input_pipeline import open_training_records
from trainer.loop import TrainingLoop
from trainer.towers import build_towers
from trainer.two_tower import TwoTowerModel
from trainer.validation import Best, Measured, Validation, open_validation

MODEL = ModelSection(embedding_dim=8, query={"hidden": []}, candidate={"hidden": []})
TRAIN = TrainSection(batch_size=100, epochs=5, learning_rate=0.02, checkpoint_every_steps=4)
"""10 steps an epoch."""


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Artifacts:
    return make_artifacts(tmp_path_factory.mktemp("made"), rows=1_000, queries=20)


def opened(made: Artifacts) -> tuple[Artifact, Artifact]:
    return open_artifact(made.examples, Kind.EXAMPLES), open_artifact(made.preprocessing, Kind.PREPROCESSING)


def fit(made: Artifacts, work: Path, **settings: object) -> TwoTowerModel:
    return task.train_model(*opened(made), work, MODEL, TRAIN.model_copy(update=settings))


def weights(model: TwoTowerModel) -> list[np.ndarray]:
    return [variable.numpy() for variable in model.trainable_variables]


@pytest.fixture
def recalls(monkeypatch) -> list[float]:
    """What validation is to find, epoch by epoch."""
    wanted: list[float] = []
    seen: list[int] = []

    def found(self: Validation, query_tower: object, candidate_tower: object) -> Measured:
        seen.append(1)
        return Measured(wanted[len(seen) - 1], 0.0, 0.0)

    monkeypatch.setattr(Validation, "measure", found)
    return wanted


def test_the_best_epoch_is_exported_not_the_last(made, tmp_path, recalls, caplog):
    recalls += [0.1, 0.3, 0.2, 0.3, 0.9]
    with caplog.at_level(logging.INFO):
        stopped = fit(made, tmp_path / "stopped", early_stopping=2)
    assert "stopped early: 2 epochs without" in caplog.text
    assert "took the weights of step 20" in caplog.text
    saved = tf.train.load_checkpoint(str(tmp_path / "stopped" / "best" / "step-20"))
    table = next(v for v in stopped.trainable_variables if "table_track" in v.name)
    shapes = saved.get_variable_to_shape_map()
    kept = [saved.get_tensor(name) for name, shape in shapes.items() if shape == list(table.shape)]
    assert any(np.array_equal(values, table) for values in kept)
    assert (tmp_path / "stopped" / "checkpoints" / "step-40.json").exists()  # trained on, to the fourth epoch
    assert not (tmp_path / "stopped" / "checkpoints" / "step-50.json").exists()


def test_patience_is_counted_across_a_restart(made, tmp_path, recalls, caplog):
    recalls += [0.5, 0.1]
    with pytest.raises(IndexError):
        fit(made, tmp_path, early_stopping=3)  # dies while it validates the third epoch
    recalls += [0.0, 0.2, 0.3, 0.4]
    with caplog.at_level(logging.INFO):
        fit(made, tmp_path, early_stopping=3)
    assert "resuming at step 28" in caplog.text
    assert "the best was 0.5000" in caplog.text
    assert "stopped early: 3 epochs" in caplog.text
    assert "took the weights of step 10" in caplog.text


def test_early_stopping_without_validation_queries_is_refused(tmp_path):
    made = make_artifacts(tmp_path / "made", rows=200, queries=1)
    for file in (made.examples / "validation").iterdir():
        file.unlink()
    examples = open_artifact(made.examples, Kind.EXAMPLES, verify=False)
    section = TRAIN.model_copy(update={"early_stopping": 1})
    with pytest.raises(TrainingError, match="early_stopping looks at the validation split, which has no queries"):
        task.train_model(
            examples, open_artifact(made.preprocessing, Kind.PREPROCESSING), tmp_path / "work", MODEL, section
        )


def test_validation_measures_what_the_evaluation_would(made):
    examples, preprocessing = opened(made)
    trained = fit(made, made.examples.parent / "validated", epochs=3)
    features = read_encoded_features(made.examples / "features.json")
    section = TRAIN.model_copy(update={"validation_k": 10, "validation_queries": 7})
    validation = open_validation(examples, preprocessing, features, trained.candidates, section)
    assert validation is not None
    assert len(validation.queries) == 7
    found = validation.measure(trained.query_tower, trained.candidate_tower)
    hits = []
    candidates = trained.candidate_tower(trained.candidates.all()).numpy()
    vectors = trained.query_tower(validation.encoded).numpy()
    for row in range(7):
        scores = candidates @ vectors[row]
        scores[validation.queries.history[row]] = -np.inf
        top = np.argsort(-scores)[:10]
        hits.append(len(set(top) & set(validation.queries.targets[row])) / 5)  # five held out of each
    assert found.recall == pytest.approx(np.mean(hits))
    assert 0.2 < found.recall < 1.0


def test_validation_ranks_only_what_was_known_before_the_split(made, tmp_path):
    # Both queries are (1, 0), of which candidate 0 scores 1, candidate 1 .8 and candidate 2 .6. Candidate 0 would have
    # won of both; without it the first of all is 1, the target of the first query and not of the second.
    queries = Queries(
        pa.array([{}] * 2),
        history=[np.array([], np.int64)] * 2,
        targets=[np.array([1]), np.array([2])],
        held_out=np.array([1, 1]),
        cold=np.array([False, False]),
    )
    encoded = {"vector": tf.constant([[1.0, 0.0]] * 2)}
    catalogue = Catalogue([[1.0, 0.0], [0.8, 0.6], [0.6, 0.8]])
    for known, recall in (([True] * 3, 0.0), ([False, True, True], 0.5), ([False, False, True], 0.5)):
        measured = Validation(queries, encoded, catalogue, np.array(known), k=1).measure(Given(), Given())
        assert measured.recall == measured.ndcg == recall
    other = make_artifacts(tmp_path, rows=20, queries=2)
    forget(other.examples, 0, 77)
    examples, preprocessing = opened(other)
    records = open_training_records(examples, read_encoded_features(other.examples / "features.json"), TRAIN)
    validation = open_validation(examples, preprocessing, records.features, records.candidates, TRAIN)
    assert validation is not None
    assert np.flatnonzero(~validation.known).tolist() == [0, 77]


def test_best_counts_the_epochs_since():
    best = Best()
    epochs = [(0.0, 0.1), (0.2, 0.1), (0.2, 0.1), (0.1, 0.9)]
    assert [best.add(*of, step) for step, of in enumerate(epochs)] == [True, True, False, False]
    assert (best.recall, best.step, best.epochs_since) == (0.2, 1, 2)
    assert best.add(0.2, 0.11, 4), "of equal recall the better NDCG"
    assert best.add(0.3, 0.0, 5)
    assert (best.recall, best.step, best.epochs_since) == (0.3, 5, 0)


def test_the_average_is_what_remains_and_survives_a_restart(made, tmp_path, monkeypatch):
    plain = fit(made, tmp_path / "plain", epochs=2)
    averaged = fit(made, tmp_path / "averaged", epochs=2, average_weights=0.9)
    assert not np.allclose(weights(plain)[0], weights(averaged)[0], atol=1e-4)

    original = task.TrainingLoop._end_epoch

    def dying(self, epoch: int, step: int) -> None:
        if epoch == 1:
            raise KeyboardInterrupt
        original(self, epoch, step)

    with monkeypatch.context() as patch:
        patch.setattr(task.TrainingLoop, "_end_epoch", dying)
        with pytest.raises(KeyboardInterrupt):
            fit(made, tmp_path / "killed", epochs=2, average_weights=0.9)
    resumed = fit(made, tmp_path / "killed", epochs=2, average_weights=0.9)
    for ours, theirs in zip(weights(resumed), weights(averaged), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_a_damaged_checkpoint_costs_its_steps_and_nothing_else(made, tmp_path, caplog):
    whole = fit(made, tmp_path / "whole", epochs=2)
    fit(made, tmp_path / "damaged", epochs=2)
    (data,) = (tmp_path / "damaged" / "checkpoints").glob("step-20.data*")
    data.write_bytes(data.read_bytes()[:1000])
    with caplog.at_level(logging.INFO):
        again = fit(made, tmp_path / "damaged", epochs=2)
    assert "the checkpoint of step 20 is not used" in caplog.text
    assert "resuming at step 16 of 20" in caplog.text
    for ours, theirs in zip(weights(again), weights(whole), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


def loop_of(made: Artifacts, work: Path, **changes: object) -> TrainingLoop:
    """Of a new model, with records that are said to be otherwise than they are."""
    features = read_encoded_features(made.examples / "features.json")
    records = replace(open_training_records(opened(made)[0], features, TRAIN), **changes)
    model = TwoTowerModel(*build_towers(features, MODEL, 1), records.candidates, records.probability, MODEL, TRAIN)
    return TrainingLoop(model, records, TRAIN, work)


@pytest.mark.parametrize("damage", ["overwritten", "removed"])
def test_records_that_cannot_be_read_are_not_called_records_that_do_not_fit(tmp_path, damage):
    made = make_artifacts(tmp_path / "made", rows=1_000, queries=1)
    loop = loop_of(made, tmp_path / "work")  # what happens to the files from here on is not what was checked
    shard = made.examples / "train" / "part-00001-of-00002.tfrecord.gz"
    if damage == "overwritten":
        content = shard.read_bytes()
        middle = len(content) // 2
        shard.write_bytes(content[:middle] + b"\xff" * 64 + content[middle + 64 :])
    else:
        shard.unlink()
    sentence = r"the training records cannot be read to their end \(.+\): fetch the artifact again, or rerun generate"
    with pytest.raises(TrainingError, match=sentence) as raised:
        loop.run()
    assert isinstance(raised.value.__cause__, tf.errors.DataLossError | tf.errors.NotFoundError)


def test_a_record_of_another_layout_is_said_to_be_one(made, tmp_path):
    with pytest.raises(TrainingError, match=r"a training record does not fit features.json \(.*past.*\): rerun"):
        loop_of(made, tmp_path, past_length=6).run()


def test_an_error_in_a_step_is_not_called_a_bad_record(made, tmp_path, monkeypatch):
    original = TwoTowerModel.compute_loss

    def failing(self, batch, training=False):
        tf.debugging.assert_less(tf.size(batch["weight"]), 1, "not of the records")
        return original(self, batch, training=training)

    monkeypatch.setattr(TwoTowerModel, "compute_loss", failing)
    with pytest.raises(tf.errors.InvalidArgumentError, match="not of the records"):
        fit(made, tmp_path)


def test_nan_stops_the_training_and_names_the_last_good_checkpoint(made, tmp_path, monkeypatch):
    original = TwoTowerModel.compute_loss
    poison = tf.Variable(0.0, trainable=False)

    def poisoned(self, batch, training=False):
        return original(self, batch, training=training) + poison

    monkeypatch.setattr(TwoTowerModel, "compute_loss", poisoned)
    look = task.TrainingLoop._look

    def looking(self, since, step, *rest, **named):
        look(self, since, step, *rest, **named)
        if step == 8:
            poison.assign(np.nan)

    monkeypatch.setattr(task.TrainingLoop, "_look", looking)
    with pytest.raises(TrainingError, match=r"the loss is nan between steps 8 and 10: .* of step 8, is in .*checkp"):
        fit(made, tmp_path)
    assert (tmp_path / "checkpoints" / "step-8.json").exists()
    assert not (tmp_path / "checkpoints" / "step-10.json").exists()


def test_float16_scales_the_loss_and_learns_all_the_same(made, tmp_path):
    plain = fit(made, tmp_path / "plain", epochs=5)
    tf.keras.mixed_precision.set_global_policy("mixed_float16")  # which a GPU would get
    try:
        half = fit(made, tmp_path / "half", epochs=5)
    finally:
        tf.keras.mixed_precision.set_global_policy("float32")
    state = tf.train.load_checkpoint(str(tmp_path / "half" / "checkpoints" / "step-50"))
    scales = [name for name in state.get_variable_to_shape_map() if "current_loss_scale" in name]
    assert len(scales) == 1
    assert state.get_tensor(scales[0]) in 2.0 ** np.arange(8, 15)  # halved with each step that it was too much for
    assert half.query_tower.projection.compute_dtype == "float16"
    features = read_encoded_features(made.examples / "features.json")
    records = open_training_records(opened(made)[0], features, TrainSection(batch_size=500))
    batch = next(iter(records.batches(0)))
    losses = [float(tf.function(model.compute_loss)(batch)) for model in (plain, half)]
    assert losses[1] == pytest.approx(losses[0], rel=0.1)
    assert losses[1] < np.log(CANDIDATES) - 1.0


def test_tensorboard_gets_scalars_histograms_and_the_projector(made, tmp_path, monkeypatch):
    monkeypatch.setenv("AIP_TENSORBOARD_LOG_DIR", str(tmp_path / "logs"))
    fit(made, tmp_path / "work", epochs=2, validation_k=10, profile_steps=2)
    assert not (tmp_path / "work" / "tensorboard").exists()
    scalars: dict[str, list[int]] = {}
    for file in (tmp_path / "logs").glob("events*"):
        for record in tf.data.TFRecordDataset(str(file)):
            event = tf.compat.v1.Event.FromString(record.numpy())
            for value in event.summary.value:
                scalars.setdefault(value.tag, []).append(event.step)
    assert scalars["validation/recall@10"] == scalars["validation/ndcg@10"] == [10, 20]
    assert scalars["loss"] == scalars["learning_rate"] == [4, 8, 10, 12, 16, 20]
    assert scalars["examples_per_second"] == [10, 20]
    assert [steps for tag, steps in scalars.items() if "table_track" in tag] == [[10, 20]]
    assert list((tmp_path / "logs" / "plugins" / "profile").iterdir())
    config = projector.ProjectorConfig()
    from google.protobuf import text_format

    text_format.Parse((tmp_path / "logs" / "projector_config.pbtxt").read_text(), config)
    vectors = np.loadtxt(tmp_path / "logs" / config.embeddings[0].tensor_path, delimiter="\t")
    assert vectors.shape == (CANDIDATES, 8)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, rtol=1e-4)
    assert (tmp_path / "logs" / config.embeddings[0].metadata_path).read_text().splitlines() == IDS


CONFIG = """
[model]
embedding_dim = 8
[train]
batch_size = 100
epochs = 1
[schema.candidate]
track = { type = "id", columns = ["candidate_id"] }
[schema.query]
history = { type = "id_sequence", columns = ["history.candidate_id"], max_length = 5, shares = "track" }
"""


def arguments(made: Artifacts, root: Path) -> list[str]:
    (root / "config.toml").write_text(CONFIG)
    return ["--config", str(root / "config.toml"), "--examples", str(made.examples), "--preprocessing",
            str(made.preprocessing), "--model-version", "4"]  # fmt: skip


def test_the_command_line_goes_by_what_vertex_ai_says(made, tmp_path):
    environment = {
        "AIP_MODEL_DIR": str(tmp_path / "model"),
        "AIP_CHECKPOINT_DIR": str(tmp_path / "checkpoints"),
        "AIP_TENSORBOARD_LOG_DIR": str(tmp_path / "logs"),
        "CLOUD_ML_JOB_ID": "job-9",
    }
    result = CliRunner().invoke(main, arguments(made, tmp_path), env=environment)
    assert result.exit_code == 0, result.output
    for kind in (Kind.QUERY_TOWER, Kind.CANDIDATE_TOWER):
        tag = read_tag(tmp_path / "model" / kind.value)
        assert (tag.model_version, tag.run, tag.kind) == (4, "job-9", kind)
    assert (tmp_path / "checkpoints" / "checkpoints" / "step-10.json").exists()
    assert list((tmp_path / "logs").glob("events*"))


def test_the_command_line_says_what_is_missing(made, tmp_path):
    result = CliRunner().invoke(main, [*arguments(made, tmp_path), "--run", "r", "--work", str(tmp_path)], env={})
    assert result.exit_code == 2
    assert "Missing option '--query-tower'" in result.output
    outputs = ["--run", "r", "--work", str(tmp_path), "--query-tower", str(tmp_path / "q"), "--candidate-tower",
               str(tmp_path / "c")]  # fmt: skip
    half = [*arguments(made, tmp_path), *outputs, "--warm-start-preprocessing", str(made.preprocessing)]
    result = CliRunner().invoke(main, half)
    assert "needs both towers and the preprocessing" in result.output
    wrong = [*arguments(made, tmp_path), *outputs, "--examples", str(tmp_path / "none")]
    result = CliRunner().invoke(main, wrong)
    assert (result.exit_code, "Traceback" in result.output) == (1, False)
    assert "there is no such folder" in result.output
    result = CliRunner().invoke(main, ["--help"])
    assert "$AIP_MODEL_DIR/query_tower by" in " ".join(result.output.split())
