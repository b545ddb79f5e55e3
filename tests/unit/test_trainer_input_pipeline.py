"""Batches by seed and epoch, parts of them for each replica, pasts shown in part, and old examples drawn less often."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from lockstep.errors import ConfigError, TrainingError
from lockstep.model_sections import TrainSection
from lockstep.schema import Schema
from lockstep.tags import Artifact, Kind, open_artifact
from tests.unit.trainer_artifacts import (
    CANDIDATES,
    LENGTH,
    SCHEMA,
    Artifacts,
    forget,
    make_artifacts,
    retag,
    write_labels,
)
from trainer import input_pipeline
from trainer.encoding import Repeated, read_encoded_features
from trainer.input_pipeline import TrainingRecords, open_training_records, sample_past

HALF_LIFE = 30.0
ROWS, OLDEST = 1_000, 200.0
"""Ages even in 200 days: about 1000 / 200 * 30 / ln 2 * (1 - 2 ** -(200 / 30)) = 214 are in an epoch."""


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Artifacts:
    return make_artifacts(tmp_path_factory.mktemp("made"), rows=ROWS, queries=1, oldest_days=OLDEST)


def opened(made: Artifacts) -> Artifact:
    return open_artifact(made.examples, Kind.EXAMPLES)


def records_of(made: Artifacts, **settings: object) -> TrainingRecords:
    examples = opened(made)
    section = TrainSection.model_validate({"batch_size": 100, "shuffle_buffer": 10_000, "seed": 3} | settings)
    return open_training_records(examples, read_encoded_features(examples / "features.json"), section)


def moods(batches: tf.data.Dataset) -> list[list[float]]:
    """What names a record, by batch."""
    return [batch["query"]["mood"].numpy()[:, 0].tolist() for batch in batches]


def joined(lists: Iterable[list[float]]) -> list[float]:
    return list(chain.from_iterable(lists))


def seed_of(number: int) -> tf.Tensor:
    return tf.constant([number, 0], tf.int64)


# Order


def test_seed_and_epoch_decide_the_order_and_a_skip_leaves_the_tail(made):
    records = records_of(made)
    first = moods(records.batches(0))
    assert len(first) == records.steps_per_epoch == 10
    assert moods(records_of(made).batches(0)) == first
    assert moods(records.batches(0, skip=7)) == first[7:]
    assert moods(records.batches(0, skip=10)) == []
    for other in (moods(records.batches(1)), moods(records_of(made, seed=4).batches(0))):
        assert other != first
        assert sorted(joined(other)) == sorted(joined(first))


def test_what_is_shown_of_a_past_depends_on_the_step_and_not_on_where_an_epoch_was_entered(made):
    records = records_of(made, sample_history=1.0)
    whole = [batch["past"].numpy() for batch in records.batches(2)]
    tail = [batch["past"].numpy() for batch in records.batches(2, skip=8)]
    np.testing.assert_array_equal(tail, whole[8:])
    shown = np.mean(np.concatenate(whole) > 0)
    assert shown < 0.8 * np.mean(np.concatenate([b["past"].numpy() for b in records_of(made).batches(2)]) > 0)


def test_a_step_is_a_full_batch_and_the_rest_of_an_epoch_is_left_out(made):
    records = records_of(made, batch_size=300)
    assert records.steps_per_epoch == 3
    assert [len(batch) for batch in moods(records.batches(0))] == [300, 300, 300]
    small = records_of(made, batch_size=5_000)
    assert (small.batch_size, small.steps_per_epoch) == (1_000, 1)
    assert len(moods(small.batches(0))[0]) == 1_000


@pytest.mark.parametrize("half_life_days", [None, HALF_LIFE])
def test_replicas_and_workers_share_the_batches_of_one_device(made, half_life_days):
    records = records_of(made, batch_size=40, half_life_days=half_life_days)
    whole = moods(records.batches(1))
    for skip in (0, 2):
        parts = [moods(records.batches(1, skip, replicas=4, worker=w, workers=2)) for w in (0, 1)]
        assert {len(part) for worker in parts for part in worker} == {10}
        # A worker has two replicas: its first two parts belong to the first step, beside the other's.
        steps = zip(parts[0][::2], parts[0][1::2], parts[1][::2], parts[1][1::2], strict=True)
        assert [joined(step) for step in steps] == whole[skip:]


def test_a_batch_joins_records_to_their_candidates(made):
    records = records_of(made, batch_size=50)
    batch = next(iter(records.batches(0)))
    index = batch["candidate_index"].numpy()
    np.testing.assert_array_equal(batch["candidate"]["track"].numpy()[:, 0], index + 2)
    history = batch["query"]["history"]
    assert isinstance(history, Repeated)
    past = batch["past"].numpy()
    assert past.shape == (50, LENGTH)
    # The id of candidate i is i + 2, so that of `past` is one more, where anything stands.
    np.testing.assert_array_equal(tf.gather(history.elements, history.places)[..., 0], np.where(past > 0, past + 1, 0))
    assert batch["weight"].dtype == tf.float32
    assert set(batch) == {"query", "candidate", "candidate_index", "past", "hidden", "weight"}


def test_a_batch_of_all_records_has_as_many_for_each_replica(made, tmp_path):
    """1,000 records are 333 for each of three replicas, and one is left out."""

    class OfThree:
        num_replicas_in_sync = 3

    def of_three(made: Artifacts, **settings: object) -> TrainingRecords:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tf.distribute, "get_strategy", OfThree)
            return records_of(made, **settings)

    records = of_three(made, batch_size=5_000)
    assert (records.batch_size, records.steps_per_epoch, records.kept) == (999, 1, 1_000)
    assert [len(part) for part in moods(records.batches(0, replicas=3))] == [333] * 3
    # What was asked for and fits is not changed: whether replicas can share it is the loop's to say.
    assert of_three(made, batch_size=100).batch_size == 100
    few = make_artifacts(tmp_path, rows=5, queries=1)
    assert records_of(few, batch_size=100).batch_size == 5
    with pytest.raises(TrainingError, match=r"needs at least 2 for each of 3 replicas"):
        of_three(few, batch_size=100)


def test_a_part_of_a_history_takes_a_feature_of_the_history(tmp_path):
    made = make_artifacts(tmp_path, rows=20, queries=1)
    declared = SCHEMA.model_dump(mode="json", exclude_none=True)
    without = Schema.model_validate({**declared, "query": {"mood": {"type": "numeric"}}})
    assert without.max_history == 0
    (made.examples / "schema.json").write_bytes(without.to_json())
    retag(made.examples)
    with pytest.raises(ConfigError, match=r"sample_history is 0\.5, but no query feature .* is of the history"):
        records_of(made, sample_history=0.5)
    assert records_of(made).past_length == 0


def test_a_record_of_another_layout_is_an_error(made):
    records = records_of(made)
    for other in (replace(records, past_length=LENGTH + 1), replace(records, own_candidate_features=("title",))):
        with pytest.raises(tf.errors.InvalidArgumentError, match=r"past|candidate/title"):
            next(iter(other.batches(0)))


# A part of the past


def test_a_share_of_none_shows_all_and_of_one_shows_at_least_one():
    past = tf.constant([[5, 0, 7, 9], [0, 0, 0, 0], [0, 3, 0, 0]] * 200, tf.int64)
    np.testing.assert_array_equal(sample_past(past, 0.0, seed_of(1)), past)
    shown = sample_past(past, 1.0, seed_of(1)).numpy()
    assert np.all((shown == 0) | (shown == past))  # what is shown stands where it stood
    assert Counter((shown > 0).sum(axis=1)[0::3]).keys() == {1, 2, 3}
    assert not shown[1::3].any()
    np.testing.assert_array_equal(shown[2::3], past[2::3])


def test_what_is_shown_is_decided_by_the_seed():
    past = tf.range(1, 401, dtype=tf.int64)[tf.newaxis] * tf.ones([3, 1], tf.int64)
    first = sample_past(past, 1.0, seed_of(8)).numpy()
    np.testing.assert_array_equal(first, sample_past(past, 1.0, seed_of(8)))
    assert not np.array_equal(first, sample_past(past, 1.0, seed_of(9)))
    assert not np.array_equal(first[0], first[1])


def test_that_share_of_the_rows_shows_a_part():
    # Of 1000 elements, fewer than all are shown with probability 1 - ln(1001 / 1000) / ln 1001, nearly 1.
    rows, share = 4_000, 0.3
    shown = sample_past(tf.ones([rows, 1_000], tf.int64), share, seed_of(5)).numpy()
    sizes = shown.sum(axis=1)
    partly = sizes[sizes < 1_000]
    expected = share * (1 - np.log(1_001 / 1_000) / np.log(1_001))
    assert abs(len(partly) - rows * expected) < 5 * np.sqrt(rows * expected * (1 - expected))
    # Whether a row is one of them has nothing to do with how many it shows: at most 31 with ln 32 / ln 1000.
    few = np.log(32) / np.log(1_000)
    assert abs(np.sum(partly <= 31) - len(partly) * few) < 5 * np.sqrt(len(partly) * few * (1 - few))


@pytest.mark.parametrize("count", [1, 2, 5])
def test_how_many_are_shown_is_the_floor_of_a_power(count):
    # floor((n + 1) ** u) is k where ln k <= u ln(n + 1) < ln(k + 1).
    rows = 20_000
    past = np.zeros((rows, 7), np.int64)
    past[:, 7 - count :] = 4
    found = Counter((sample_past(tf.constant(past), 1.0, seed_of(2)).numpy() > 0).sum(axis=1).tolist())
    assert set(found) == set(range(1, count + 1))
    for k in found:
        chance = np.log((k + 1) / k) / np.log(count + 1)
        assert abs(found[k] - rows * chance) <= 5 * np.sqrt(rows * chance * (1 - chance)), k


def test_every_element_and_every_pair_is_shown_equally_often():
    rows, places = 20_000, [0, 2, 3, 5]
    past = np.zeros((rows, 6), np.int64)
    past[:, places] = [9, 8, 7, 6]
    shown = sample_past(tf.constant(past), 1.0, seed_of(11)).numpy()[:, places] > 0
    size = shown.sum(axis=1)
    for k, subsets in ((1, 4), (2, 6), (3, 4)):
        found = Counter(map(tuple, shown[size == k].tolist()))
        of, chance = int(np.sum(size == k)), 1 / subsets
        assert len(found) == subsets
        assert max(abs(n - of * chance) for n in found.values()) < 5 * np.sqrt(of * chance * (1 - chance))


# Old examples


def ages_by_mood(made: Artifacts) -> dict[float, float]:
    """Days by what names a record, read from the files."""
    ages = {}
    for record in tf.data.TFRecordDataset(list(records_of(made).files), "GZIP").as_numpy_iterator():
        feature = tf.train.Example.FromString(record).features.feature
        ages[feature["query/mood"].float_list.value[0]] = feature["age_days"].float_list.value[0]
    assert len(ages) == ROWS
    return ages


def drawn(records: TrainingRecords, epoch: int) -> list[float]:
    """All that an epoch draws, the last ones that it does not use included."""
    return joined(moods(replace(records, kept=records.rows, batch_size=1).batches(epoch)))


def test_an_example_is_drawn_half_as_often_for_each_half_life_of_age(made, monkeypatch):
    monkeypatch.setattr(input_pipeline, "_CHUNK", 300)
    records, ages, epochs = records_of(made, half_life_days=HALF_LIFE), ages_by_mood(made), 6
    found = [drawn(records, epoch) for epoch in range(epochs)]
    assert len(set(map(frozenset, found))) == epochs  # each has others
    assert max(Counter(found[0]).values()) == 1
    assert sorted(found[3]) == sorted(drawn(records_of(made, half_life_days=HALF_LIFE), 3))
    times = Counter(joined(found))
    for newest, oldest in ((0, 10), (10, 30), (30, 60), (60, 120), (120, 200)):
        # Each record is drawn or not, epoch by epoch.
        band = [mood for mood, age in ages.items() if newest <= age < oldest]
        chance = np.array([2.0 ** (-ages[mood] / HALF_LIFE) for mood in band])
        expected, deviation = epochs * chance.sum(), np.sqrt(epochs * (chance * (1 - chance)).sum())
        assert abs(sum(times[mood] for mood in band) - expected) < 5 * deviation, oldest


def test_an_epoch_never_promises_more_than_it_draws(made):
    records = records_of(made, half_life_days=HALF_LIFE, batch_size=ROWS)
    assert records.rows == ROWS
    assert 100 < records.kept < 214  # five deviations of about 11 below, and of a day more than their age
    assert records.batch_size == records.kept
    for epoch in range(15):
        assert [len(batch) for batch in moods(records.batches(epoch))] == [records.kept]


@pytest.mark.parametrize("half_life_days", [None, HALF_LIFE])
def test_the_probability_of_a_candidate_is_its_share_of_what_epochs_draw(made, half_life_days):
    records = records_of(made, half_life_days=half_life_days)
    weight = np.zeros(CANDIDATES)
    for record in tf.data.TFRecordDataset(list(records.files), "GZIP").as_numpy_iterator():
        feature = tf.train.Example.FromString(record).features.feature
        (candidate,), (age,) = feature["candidate_index"].int64_list.value, feature["age_days"].float_list.value
        weight[candidate] += 1.0 if half_life_days is None else 2.0 ** (-age / half_life_days)
    labels = np.flatnonzero(weight)
    assert len(labels) > 100
    # Ages are counted in whole hours, of which one is 2 ** (1 / 720), a thousandth.
    found, precision = records.probability.numpy(), 1e-6 if half_life_days is None else 1e-3
    np.testing.assert_allclose(found[labels], weight[labels] / weight.sum(), rtol=precision)
    assert records.probability.dtype == tf.float32


def with_labels(folder: Path, labels: dict[tuple[int, int], int], *unknown: int) -> Artifacts:
    """Examples of these labels: (candidate, age in hours) -> how many."""
    made = make_artifacts(folder, rows=200, queries=1)
    write_labels(made.examples, labels)
    forget(made.examples, *unknown)
    return made


@pytest.mark.parametrize(
    ("half_life_days", "of_7", "of_9"),
    [
        (None, 4.0, 1.0),
        # 3 + 1/2 of candidate 7, 1/4 of candidate 9.
        (30.0, 7 / 2, 1 / 4),
    ],
)
def test_what_is_no_label_has_half_the_share_of_the_rarest(tmp_path, half_life_days, of_7, of_9):
    made = with_labels(tmp_path, {(7, 0): 3, (7, 30 * 24): 1, (9, 60 * 24): 1})
    section = {"half_life_days": half_life_days, "batch_size": 2}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(input_pipeline, "_kept", lambda *_: 2)  # of so few labels an epoch would promise none
        probability = records_of(made, **section).probability
    expected = np.full(CANDIDATES, of_9 / 2)
    expected[[7, 9]] = of_7, of_9
    np.testing.assert_allclose(probability, expected / (of_7 + of_9), rtol=1e-6)


def test_a_candidate_that_was_not_known_before_the_validation_cut_has_no_probability(tmp_path):
    probability = records_of(with_labels(tmp_path, {(7, 0): 3, (9, 5): 1}, 3, 119)).probability.numpy()
    assert np.flatnonzero(probability == 0).tolist() == [3, 119]
    np.testing.assert_allclose(probability[[2, 7, 9]], [1 / 8, 3 / 4, 1 / 4], rtol=1e-6)


def test_the_rarest_label_may_be_a_label_twice(tmp_path):
    probability = records_of(with_labels(tmp_path, {(7, 0): 4, (9, 0): 2})).probability.numpy()
    np.testing.assert_allclose(probability[[2, 7, 9]], [1 / 6, 4 / 6, 2 / 6], rtol=1e-6)


def test_what_is_known_has_a_probability_however_old_its_labels_are(tmp_path):
    made = with_labels(tmp_path, {(7, 0): 100, (9, 200 * 24): 1})
    probability = records_of(made, half_life_days=1.0, batch_size=2).probability.numpy()
    assert np.all(probability > 0)


def test_an_epoch_that_would_draw_nothing_is_refused(made):
    with pytest.raises(TrainingError, match=r"of 1000 training examples an epoch has about 0 with .* = 1\.0,"):
        records_of(made, half_life_days=1.0)  # 3.6 are expected, give or take 1.5


def test_examples_of_an_earlier_version_are_refused(tmp_path: Path):
    made = make_artifacts(tmp_path, rows=20, queries=1)
    assert records_of(made).kept == 20
    (made.examples / "labels.parquet").unlink()
    retag(made.examples)
    sentence = r"has no labels\.parquet: an earlier version of Lockstep made it, .* rerun generate"
    with pytest.raises(TrainingError, match=sentence):
        records_of(made)
    for path in (made.examples / "candidates").iterdir():
        path.unlink()
    (made.examples / "candidates").rmdir()
    retag(made.examples)
    with pytest.raises(TrainingError, match=r"has no candidates and no labels\.parquet: an earlier version"):
        records_of(made)
