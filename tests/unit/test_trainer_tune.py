"""The search for settings: what it tries, what it refuses, how it goes on, and that it never makes things worse."""

from __future__ import annotations

import json
import logging
import shutil
import tomllib
from datetime import datetime
from pathlib import Path
from typing import Any

import optuna
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from lockstep.config import load_config
from lockstep.errors import ConfigError, InputMismatchError, TrainingError
from lockstep.model_sections import ModelSection, Range, TrainSection, TuneSection
from lockstep.tags import Kind, open_artifact, read_tag, write_tag
from pipelines.cli import main
from tests.unit.trainer_artifacts import Artifacts, make_artifacts
from trainer import tune
from trainer.encoding import read_encoded_features
from trainer.task import train_model
from trainer.validation import open_validation

MODEL = ModelSection(embedding_dim=8, query={"hidden": []}, candidate={"hidden": []})
TRAIN = TrainSection(batch_size=100, epochs=1, learning_rate=0.003, validation_k=10)
SCHEMA = '[schema.query.a]\ntype = "id"\n[schema.candidate.b]\ntype = "id"\n'
RATE = "train.learning_rate"
PARAMETERS = {RATE: Range(low=0.01, high=0.1, log=True), "model.query.hidden": ((), (12, 8))}


def search(made: Artifacts, work: Path, trials: int, parameters: Any = PARAMETERS, **others: Any) -> tune.Best:
    settings = {"model": MODEL, "train": TRAIN, "seed": 1} | others
    section = TuneSection(trials=trials, parameters=parameters)
    return tune.run(examples=made.examples, preprocessing=made.preprocessing, work=work, tune=section, **settings)


def retag(made: Artifacts) -> None:
    tag = read_tag(made.examples)
    write_tag(made.examples, Kind.EXAMPLES, run=tag.run, schema=tag.schema, rows=tag.rows)


def storage(work: Path) -> JournalStorage:
    return JournalStorage(JournalFileBackend(str(work / "trials.log")))


def journal(work: Path) -> optuna.Study:
    return optuna.load_study(study_name="tune", storage=storage(work))


def finished(work: Path) -> dict[int, datetime | None]:
    """When each trial ended; one that is trained again ends later."""
    return {trial.number: trial.datetime_complete for trial in journal(work).trials}


def rows(work: Path) -> list[dict[str, Any]]:
    return json.loads((work / "trials.json").read_text())


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Artifacts:
    """Without a test split: whoever looked for one would not find it."""
    made = make_artifacts(tmp_path_factory.mktemp("made"), rows=600, queries=30)
    shutil.rmtree(made.examples / "test")
    retag(made)
    return made


@pytest.fixture(scope="module")
def searched(made, tmp_path_factory) -> tuple[Path, tune.Best]:
    work = tmp_path_factory.mktemp("searched") / "work"
    return work, search(made, work, trials=2)


@pytest.fixture
def begun(searched, tmp_path) -> Path:
    """A copy of the search of two trials, to go on with."""
    return shutil.copytree(searched[0], tmp_path / "work")


# What is found


def test_of_equal_recall_the_better_ndcg_is_the_best(made, tmp_path, caplog):
    # Of so many every candidate is found by every model.
    everything = TRAIN.model_copy(update={"validation_k": 10_000})
    best = search(made, tmp_path / "work", trials=2, train=everything)
    found = rows(tmp_path / "work")
    assert [row["recall"] for row in found] == [1.0, 1.0] == [best.start, best.recall]
    assert found[0]["ndcg"] > found[1]["ndcg"]
    assert best.settings == found[0]["settings"]
    assert "recall@10000 is always 1 and NDCG alone decides: lower [train] validation_k" in caplog.text


def test_the_best_trial_is_returned_with_what_it_is_compared_to(made, searched, tmp_path):
    work, best = searched
    found = rows(work)
    assert [(row["recall"], row["ndcg"]) for row in found] == sorted(
        ((row["recall"], row["ndcg"]) for row in found), reverse=True
    )
    assert {row["trial"] for row in found} == {1, 2}
    assert (best.recall, best.settings, best.trials) == (found[0]["recall"], found[0]["settings"], 2)
    assert best.recall > best.start > 0
    assert journal(work).direction == optuna.study.StudyDirection.MAXIMIZE
    for row in found:
        assert 0.01 <= row["settings"][RATE] <= 0.1
        assert row["settings"]["model.query.hidden"] in ([], [12, 8])
    # What it starts from is the configuration, trained as it is.
    examples, preprocessing = (
        open_artifact(made.examples, Kind.EXAMPLES),
        open_artifact(made.preprocessing, Kind.PREPROCESSING),
    )
    trained = train_model(examples, preprocessing, tmp_path, MODEL, TRAIN)
    features = read_encoded_features(examples / "features.json")
    validation = open_validation(examples, preprocessing, features, trained.candidates, TRAIN)
    assert validation is not None
    measured = validation.measure(trained.query_tower, trained.candidate_tower)
    assert best.start == pytest.approx(measured.recall, abs=0.01)


def test_what_is_left_of_a_trial_is_what_tensorboard_reads(searched):
    work, _ = searched
    folders = list((work / "trials").iterdir())
    assert len(folders) == 3  # two trials, and the configuration itself
    for folder in folders:
        assert [path.name for path in folder.iterdir()] == ["tensorboard"]


def test_nothing_better_leaves_the_configuration_as_it_is(made, tmp_path):
    best = search(made, tmp_path, trials=1, parameters={RATE: (1e-9,)}, train=TRAIN.model_copy(update={"epochs": 3}))
    (row,) = rows(tmp_path)
    assert row["recall"] < best.start == best.recall
    assert (best.settings, best.toml(), best.trials) == ({}, "", 1)


def test_another_seed_tries_other_settings(tmp_path):
    def first_numbers(seed: int) -> set[float]:
        found = set()
        for done in range(6):
            study = optuna.create_study(sampler=tune.sampler(seed, done))
            found.add(study.ask().suggest_float("x", 0.0, 1.0))
        return found

    assert len(first_numbers(1)) == 6
    assert first_numbers(1) == first_numbers(1)
    assert not first_numbers(1) & first_numbers(2)
    assert len(first_numbers(-1) | first_numbers(2**40)) == 12


# Going on


def test_more_trials_go_on_where_the_search_stood(made, searched, begun, caplog):
    before = finished(begun)
    assert search(made, begun, trials=2) == searched[1]
    assert finished(begun) == before
    with caplog.at_level(logging.INFO, logger=tune.__name__):
        best = search(made, begun, trials=3)
    said = [record.getMessage() for record in caplog.records if record.name == tune.__name__]
    assert [line.split(":")[0] for line in said if "recall@" not in line] == ["trial 3 of 3"]
    after = finished(begun)
    assert {number: after.pop(number) for number in before} == before
    assert len(after) == 1
    assert best.trials == len(rows(begun)) == 3
    assert best.start == searched[1].start
    assert best.recall == max(row["recall"] for row in rows(begun)) >= searched[1].recall


def test_a_trial_that_was_killed_is_tried_again(made, begun):
    study = journal(begun)
    killed = study.ask()
    rate = killed.suggest_float(RATE, 0.01, 0.1, log=True)
    hidden = killed.suggest_categorical("model.query.hidden", ["[]", "[12, 8]"])
    best = search(made, begun, trials=3)
    again = journal(begun).trials[-1]
    assert [trial.state for trial in journal(begun).trials[2:]] == [TrialState.PRUNED, TrialState.COMPLETE]
    assert again.user_attrs["settings"] == {RATE: rate, "model.query.hidden": json.loads(hidden)}
    assert best.trials == len(rows(begun)) == 3
    assert killed.number + 1 not in {row["trial"] for row in rows(begun)}


@pytest.mark.parametrize(
    "others",
    [
        {"seed": 2},
        {"parameters": {**PARAMETERS, "model.query.hidden": ((),)}},
        {"parameters": {**PARAMETERS, RATE: Range(low=0.01, high=0.2, log=True)}},
        {"train": TRAIN.model_copy(update={"epochs": 2})},
        {"model": MODEL.model_copy(update={"temperature": 0.2})},
    ],
)
def test_the_journal_of_another_search_is_refused(made, begun, others):
    before = finished(begun)
    with pytest.raises(ConfigError, match=r"work holds a search of other examples, settings .* remove it, or name"):
        search(made, begun, trials=3, **others)
    assert finished(begun) == before


def test_the_journal_of_other_examples_is_refused(begun, tmp_path):
    other = make_artifacts(tmp_path / "other", rows=100, queries=2)
    with pytest.raises(ConfigError, match="holds a search of other examples"):
        search(other, begun, trials=3)


# Trials that fail


def test_a_trial_that_fails_does_not_end_the_search(made, tmp_path, caplog):
    study = optuna.create_study(storage=storage(tmp_path), study_name="tune", direction="maximize")
    for rate in ("1e+30", "0.05"):  # in this order
        study.enqueue_trial({RATE: rate})
    best = search(made, tmp_path, trials=2, parameters={RATE: (1e30, 0.05)})
    good, bad = rows(tmp_path)
    assert (bad["trial"], bad["recall"], bad["settings"]) == (1, None, {RATE: 1e30})
    assert (good["trial"], good["settings"]) == (2, {RATE: 0.05})
    assert (best.settings, best.recall, best.trials) == ({RATE: 0.05}, good["recall"], 2)
    assert "trial 1 failed: " in caplog.text
    assert "Traceback" not in caplog.text
    assert not list((tmp_path / "trials").glob("*/checkpoints"))


def test_a_search_of_nothing_but_failures_says_so(made, tmp_path):
    with pytest.raises(TrainingError, match=r"all 1 trials failed: narrow the ranges of \[tune\]"):
        search(made, tmp_path, trials=1, parameters={RATE: (1e30,)})
    assert [row["recall"] for row in rows(tmp_path)] == [None]


# What is refused before anything is trained


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        ({"model.embedding_dim": (64, 1)}, "embedding_dim = 1: input should be greater than or equal to 2"),
        (
            {"model.query.hiden": ((8,),)},
            r"'model.query.hiden': \[model.query\] has an unknown key 'hiden' \(did you mean",
        ),
        ({"model.query.pooling.history": ("mean", "sum")}, "history = 'sum'"),
        ({"train.optimizer": ("adam", "sgd")}, "optimizer = 'sgd'"),
        ({"model.dropout": Range(low=0.0, high=1.5)}, r"dropout = 1\.5"),
        ({RATE: Range(low=-1.0, high=1.5)}, r"learning_rate = -1\.0"),
        ({"train.batch_size": Range(low=64.0, high=512.0)}, r"batch_size = 64\.0\d+: .* fractional part"),
        ({"train.batch_size.x": (1,)}, "'train.batch_size.x' names no key: train.batch_size is none that has keys"),
        ({"train.batch_size.x.y": (1,)}, "'train.batch_size.x.y' names no key"),
        ({"train.half_life_days.x": (1,)}, "half_life_days"),
    ],
)
def test_a_choice_that_its_key_does_not_take_is_refused(made, tmp_path, parameters, sentence):
    with pytest.raises(ConfigError, match=sentence):
        search(made, tmp_path / "work", trials=1, parameters={RATE: (0.1,), **parameters})
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize("name", ["model.hidden", "data.seed", "learning_rate", "train", "model."])
def test_a_key_that_there_is_not_is_refused_when_the_file_is_read(name, tmp_path):
    file = tmp_path / "my.toml"
    file.write_text(f'{SCHEMA}[tune.parameters]\n"{name}" = [1]')
    with pytest.raises(ConfigError, match=rf"'{name}' names no key of \[model\] or \[train\], such as"):
        load_config(file)


def test_ends_of_ranges_and_all_choices_that_a_key_takes_are_accepted(made, begun):
    parameters = {
        **TuneSection().parameters,
        "model.candidate.hidden": ("unset", (), (8, 8)),
        "model.query.pooling.history": ("unset", "recency"),
        "train.epochs": Range(low=1, high=9, log=True),
        "train.average_weights": ("unset", 0.9),
        # These go together, and not each by itself with the configuration.
        "train.find_hidden": (True, False),
        "train.sample_history": (0.5, 1.0),
        "train.sample_at_most": (3, 5),
    }
    # What is refused is the journal, which is opened after the choices were looked at.
    with pytest.raises(ConfigError, match="holds a search of other examples, settings or parameters"):
        search(made, begun, trials=2, parameters=parameters)


@pytest.mark.parametrize("files", [True, False])
def test_without_a_validation_query_there_is_nothing_to_judge_by(tmp_path, files):
    made = make_artifacts(tmp_path / "made", rows=100, queries=1)
    part = made.examples / "validation" / "part-0.parquet"
    if files:
        pq.write_table(pq.read_table(part).slice(0, 0), part)
    else:
        part.unlink()
    retag(made)
    with pytest.raises(ConfigError, match=r"no validation queries to judge by: raise \[data\] validation_share"):
        search(made, tmp_path / "work", trials=1)
    assert not (tmp_path / "work").exists()


def test_inputs_of_two_runs_are_refused(made, tmp_path):
    other = make_artifacts(tmp_path / "other", rows=20, queries=1, run="run-2")
    with pytest.raises(InputMismatchError, match="the run of examples"):
        search(Artifacts(made.examples, other.preprocessing, made.entities), tmp_path / "work", trials=1)


# Settings as sections, and as a file


def test_settings_replace_nested_keys_and_unset_leaves_one_out():
    model = ModelSection(query={"hidden": [4], "cross_layers": 1, "pooling": {"history": "mean", "other": "mean"}})
    train = TrainSection(half_life_days=30, epochs=7)
    assert tune.with_settings(model, train, {}) == (model, train)
    found, trained = tune.with_settings(
        model,
        train,
        {
            "model.query.hidden": [16, 8],
            "model.query.pooling.history": "attention",
            "model.candidate.hidden": "unset",
            "train.half_life_days": "unset",
            "train.epochs": "unset",
            "train.learning_rate": 0.5,
        },
    )
    pooling = {"history": "attention", "other": "mean"}
    query = model.query.model_copy(update={"hidden": (16, 8), "pooling": pooling})
    assert found == model.model_copy(update={"query": query})
    assert trained == TrainSection(learning_rate=0.5)
    assert (trained.half_life_days, trained.epochs) == (None, 5)  # the defaults
    found, _ = tune.with_settings(model, train, {"model.query.pooling.history": "unset"})
    assert found.query.pooling == {"other": "mean"}
    assert model.query.pooling == {"history": "mean", "other": "mean"}  # as given


@pytest.mark.parametrize("name", ["learning_rate", "data.seed", "train", "model"])
def test_settings_of_other_sections_are_refused(name):
    with pytest.raises(ConfigError, match=rf"'{name}' names no key of \[model\] or \[train\], such as"):
        tune.with_settings(MODEL, TRAIN, {name: 1})


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("train.epochs", 0, "epochs = 0: input should be greater than or equal to 1"),
        ("train.epoch", 4, r"'epoch' \(did you mean 'epochs'\?\)"),
        ("train.epochs.x", 4, "'train.epochs.x' names no key: train.epochs is none that has keys"),
        ("model.", 4, "an unknown .* ''; valid are candidate"),
    ],
)
def test_settings_that_their_key_does_not_take_are_refused(name, value, sentence):
    with pytest.raises(ConfigError, match=sentence):
        tune.with_settings(MODEL, TRAIN, {name: value})


BEST = {
    "train.learning_rate": 1e-05,
    "model.query.hidden": [],
    "model.query.pooling.history": "attention",
    "model.layer_norm": True,
    "train.half_life_days": "unset",
    "model.candidate.hidden": [12, 8],
    "train.epochs": 7,
}


def test_the_best_settings_as_toml_override_a_configuration(tmp_path):
    text = tune.Best(BEST, 0.5, 0.4, 9).toml()
    assert text == (
        "[model.candidate]\nhidden = [12, 8]\n\n"
        "[model]\nlayer_norm = true\n\n"
        "[model.query]\nhidden = []\n\n"
        '[model.query.pooling]\nhistory = "attention"\n\n'
        "[train]\nepochs = 7\n# without half_life_days\nlearning_rate = 1e-05\n"
    )
    expected = tune.with_settings(ModelSection(), TrainSection(), BEST)
    file = tmp_path / "my.toml"
    file.write_text(text + SCHEMA)
    config = load_config(file)
    assert (config.model, config.train) == expected


def test_only_what_is_left_out_is_still_said():
    text = tune.Best({"train.half_life_days": "unset"}, 0.5, 0.4, 9).toml()
    assert text == "[train]\n# without half_life_days\n"
    assert tomllib.loads(text) == {"train": {}}


# The command

TINY = """
[data]
source = "synthetic"
test_share = 0.1
validation_share = 0.2
[data.synthetic]
playlists = 300
tracks = 120
artists = 20
genres = 3
mean_length = 8
[schema.query.history]
type = "id_sequence"
columns = ["history.candidate_id"]
shares = "track"
[schema.candidate.track]
type = "id"
columns = ["candidate_id"]
[model]
embedding_dim = 8
[train]
batch_size = 64
epochs = 2
learning_rate = 1e-9
validation_k = 10
[tune.parameters]
"train.learning_rate" = [0.05]
"model.query.hidden" = [[]]
"""


@pytest.mark.e2e
def test_the_command_prints_settings_that_go_into_the_file(tmp_path):
    file, root = tmp_path / "tiny.toml", tmp_path / "root"
    file.write_text(TINY)
    command = ["--debug", "tune", "--config", str(file), "--root", str(root), "--trials", "1"]
    first = CliRunner().invoke(main, command)
    assert first.exit_code == 0, first.output
    (folder,) = (root / "tune").iterdir()
    work = folder / "search"
    (row,) = rows(work)
    start, _ = journal(work).user_attrs["start"]
    assert row["recall"] > start
    heading, found = first.stdout[first.stdout.index("# recall@10") :].split("\n", 1)
    assert heading == (
        f"# recall@10 on the validation split: {row['recall']:.4f}, against {start:.4f} of the configuration; "
        f"1 trials, all in {work / 'trials.json'}"
    )
    assert tomllib.loads(found) == {"model": {"query": {"hidden": []}}, "train": {"learning_rate": 0.05}}
    again = CliRunner().invoke(main, command)
    assert again.stdout == f"using the examples in {folder}: remove it where the source's files have changed\n" + (
        f"{heading}\n{found}"
    )
    refused = CliRunner().invoke(main, [*command[1:], "--seed", "2"])
    assert refused.exit_code == 1
    assert f"Error: {work} holds a search of other examples, settings or parameters" in refused.output


def test_the_command_refuses_a_root_in_a_bucket_and_no_trials(tmp_path):
    file = tmp_path / "tiny.toml"
    file.write_text(TINY)
    bucket = CliRunner().invoke(main, ["tune", "--config", str(file), "--root", "gs://b/p"])
    assert "[run] root is gs://b/p: give --root, a local or mounted folder." in bucket.output
    none = CliRunner().invoke(main, ["tune", "--config", str(file), "--trials", "0"])
    assert (bucket.exit_code, none.exit_code) == (2, 2)
    assert "0 is not in the range x>=1" in none.output
