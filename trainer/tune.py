"""The search for settings of [model] and [train]: trials on one set of examples, judged on the validation split alone.

<work>/
  trials.log              Optuna's journal; a search that was killed goes on with it
  trials/<settings>/      a trial's TensorBoard logs, and while it runs its checkpoints
  trials.json             [{"trial", "recall", "settings"}, ...], best first; a recall of null failed

The test split is never opened: a setting that was chosen on it would flatter itself there.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import shutil
import time
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import tensorflow as tf
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from lockstep.config import parse_section
from lockstep.errors import CombinationError, ConfigError, TrainingError
from lockstep.model_sections import ModelSection, Range, TrainSection, TuneSection
from lockstep.storage import write_atomically
from lockstep.tags import Artifact, Kind, open_artifact
from trainer.encoding import check_same_features, check_same_origin
from trainer.evaluation.queries import read_catalogue, read_queries
from trainer.task import train_model
from trainer.validation import open_validation

_log = logging.getLogger(__name__)
UNSET = "unset"
"""A choice that stands for leaving the key out."""
_FAILURES = (TrainingError, ConfigError, tf.errors.ResourceExhaustedError)
"""What a trial's settings may come to, and the others' need not: NaN, keys that do not go together, too much memory."""
_RANDOM_TRIALS = 8
"""Tried before there is anything to learn from."""


@dataclass(frozen=True)
class Best:
    """The best settings that were found.

    Args:
        settings: `model.<key>` or `train.<key>` -> value.
        recall: of validation_k, on the validation split.
        start: the same of the configuration's own settings.
        trials: how many were finished.
    """

    settings: Mapping[str, Any]
    recall: float
    start: float
    trials: int

    def toml(self) -> str:
        """The settings as they stand in a configuration file."""
        tables: dict[str, list[str]] = {}
        for name, value in sorted(self.settings.items()):
            table, _, key = name.rpartition(".")
            line = f"# without {key}" if value == UNSET else f"{key} = {json.dumps(value)}"
            tables.setdefault(table, []).append(line)
        return "\n".join(f"[{table}]\n" + "".join(f"{line}\n" for line in lines) for table, lines in tables.items())


def run(
    *,
    examples: Path,
    preprocessing: Path,
    work: Path,
    model: ModelSection,
    train: TrainSection,
    tune: TuneSection,
    seed: int = 1,
) -> Best:
    """Try settings, the given ones first, and return the best.

    Each trial is a training as `trainer.task` does it, with its checkpoints, so that a killed search goes on in the
    middle of a trial. A trial that ends in NaN has failed; the others go on.

    Args:
        examples: input, kind `examples`.
        preprocessing: input, kind `preprocessing`, of the same run.
        work: the search's folder.
        model, train: what is tuned; keys that the search does not name stay as they are.

    Raises:
        ConfigError: a choice that its key does not take, no validation query to judge by, or another search's journal.
        InputMismatchError: the inputs were not made together.
        TrainingError: the configuration itself cannot be trained, or every trial failed.

    Reference: Bergstra et al., "Algorithms for hyper-parameter optimization" (TPE), NeurIPS 2011.
    """
    search = _Search(
        open_artifact(examples, Kind.EXAMPLES), open_artifact(preprocessing, Kind.PREPROCESSING), work, model, train
    )
    search.check(tune)
    work.mkdir(parents=True, exist_ok=True)
    study = _open_study(work, search.identity(tune, seed))
    if "start" not in study.user_attrs:
        _log.info("the configuration as it is:")
        study.set_user_attr("start", search.measure({}))
        search.drop_checkpoints()
    while (done := len(_ended(study))) < tune.trials:
        study.sampler = sampler(seed, done)
        study.optimize(lambda trial: search.objective(trial, tune), n_trials=1, catch=_FAILURES)
        search.drop_checkpoints()
        _report(study, work)
    return _best(study)


def with_settings(
    model: ModelSection, train: TrainSection, settings: Mapping[str, Any]
) -> tuple[ModelSection, TrainSection]:
    """[model] and [train] with some of their keys replaced.

    Args:
        settings: `model.<key>` or `train.<key>` -> value, nested keys such as `model.query.hidden` among them; UNSET
            leaves the key out.

    Raises:
        ConfigError: a name that is no key, or a value that its key does not take.
    """
    raw = {"model": model.to_dict(), "train": train.to_dict()}
    for name, value in settings.items():
        *parents, key = name.split(".")
        if not parents or parents[0] not in raw:
            raise ConfigError(f"{name!r} names no key of [model] or [train], such as 'train.learning_rate'")
        target: Any = raw
        for parent in parents:
            target = target.setdefault(parent, {}) if isinstance(target, dict) else None
        if not isinstance(target, dict):
            raise ConfigError(f"{name!r} names no key: {'.'.join(parents)} is none that has keys")
        target.pop(key, None)
        if value != UNSET:
            target[key] = value
    return parse_section(ModelSection, raw["model"]), parse_section(TrainSection, raw["train"])


def sampler(seed: int, done: int) -> optuna.samplers.TPESampler:
    """What chooses the settings of the next trial.

    It has a seed a trial, so that a search that goes on does not begin its random numbers again.

    Args:
        done: how many trials have ended.
    """
    digest = hashlib.sha256(f"{seed} {done}".encode()).digest()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # multivariate
        return optuna.samplers.TPESampler(
            seed=int.from_bytes(digest[:4]), multivariate=True, n_startup_trials=_RANDOM_TRIALS
        )


@dataclass(frozen=True)
class _Search:
    """What all trials share."""

    examples: Artifact
    preprocessing: Artifact
    work: Path
    model: ModelSection
    train: TrainSection

    def check(self, tune: TuneSection) -> None:
        """Refuse, before anything is trained, what some trial would be refused for."""
        check_same_origin(self.examples, self.preprocessing)
        if not len(read_queries(self.examples / "validation", read_catalogue(self.examples))):
            raise ConfigError(
                f"{self.examples.path} has no validation queries to judge by: raise [data] validation_share or "
                "holdout_share, or set validation_from"
            )
        for name, choices in tune.parameters.items():
            for value in _extremes(choices) if isinstance(choices, Range) else choices:
                try:
                    with suppress(CombinationError):  # beside other choices of the search it may do
                        with_settings(self.model, self.train, {name: value})
                except ConfigError as error:
                    raise ConfigError(f"[tune.parameters] {name!r}: {error}") from error

    def identity(self, tune: TuneSection, seed: int) -> str:
        """What a search must have in common with the one whose journal it goes on with."""
        digests = [self.examples.tag.digest, self.preprocessing.tag.digest]
        facts = [digests, self.model.to_dict(), self.train.to_dict(), tune.to_dict()["parameters"], seed]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def objective(self, trial: optuna.Trial, tune: TuneSection) -> float:
        """The validation recall of a trial's settings."""
        settings = {name: _suggest(trial, name, choices) for name, choices in tune.parameters.items()}
        trial.set_user_attr("settings", settings)
        _log.info("trial %d of %d: %s", trial.number + 1, tune.trials, settings)
        try:
            recall, ndcg = self.measure(settings)
            trial.set_user_attr("ndcg", ndcg)
            return recall
        except _FAILURES as error:
            _log.warning("trial %d failed: %s", trial.number + 1, error)
            raise

    def measure(self, settings: Mapping[str, Any]) -> tuple[float, float]:
        """Train with settings, and return recall and NDCG on the validation split."""
        model, train = with_settings(self.model, self.train, settings)
        named = json.dumps([model.to_dict(), train.to_dict()], sort_keys=True)
        folder = self.work / "trials" / hashlib.sha256(named.encode()).hexdigest()[:16]
        started = time.monotonic()
        trained = train_model(self.examples, self.preprocessing, folder, model, train)
        features = check_same_features(self.examples, self.preprocessing)
        validation = open_validation(self.examples, self.preprocessing, features, trained.candidates, train)
        assert validation is not None, "the search has looked"
        found = validation.measure(trained.query_tower, trained.candidate_tower)
        _log.info("recall@%d %.4f in %.0f s", train.validation_k, found.recall, time.monotonic() - started)
        return found.recall, found.ndcg

    def drop_checkpoints(self) -> None:
        """Remove what an ended trial, failed ones included, needs no more."""
        for name in ("checkpoints", "best"):
            for folder in (self.work / "trials").glob(f"*/{name}"):
                shutil.rmtree(folder)


def _extremes(range_: Range) -> tuple[float, ...]:
    """Numbers that a key must take if it is to take all of a range."""
    if isinstance(range_.low, int) and isinstance(range_.high, int):
        return range_.low, range_.high
    # The second is no whole number, which a key of whole ones must not be given.
    return range_.low, math.nextafter(range_.low, range_.high), range_.high


def _open_study(work: Path, identity: str) -> optuna.Study:
    """The journal's study, whose killed trial is tried again."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # a failed trial is logged here, without its traceback
    storage = JournalStorage(JournalFileBackend(str(work / "trials.log")))
    study = optuna.create_study(storage=storage, study_name="tune", direction="maximize", load_if_exists=True)
    if study.user_attrs.get("search", identity) != identity:
        raise ConfigError(
            f"{work} holds a search of other examples, settings or parameters, or of another seed: "
            "remove it, or name another folder"
        )
    study.set_user_attr("search", identity)
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        study.enqueue_trial(trial.params)
        study.tell(trial.number, state=TrialState.PRUNED)
    return study


def _ended(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that were measured or failed; those that were killed are pruned, and tried again."""
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.FAIL))


def _suggest(trial: optuna.Trial, name: str, choices: Any) -> Any:
    if not isinstance(choices, Range):
        # Optuna's journal takes no tuples.
        return json.loads(trial.suggest_categorical(name, [json.dumps(choice) for choice in choices]))
    if isinstance(choices.low, int) and isinstance(choices.high, int):
        return trial.suggest_int(name, choices.low, choices.high, log=choices.log)
    return trial.suggest_float(name, choices.low, choices.high, log=choices.log)


def _report(study: optuna.Study, work: Path) -> None:
    rows = [
        {
            "trial": trial.number + 1,
            "recall": trial.value,
            "ndcg": trial.user_attrs.get("ndcg"),
            "settings": trial.user_attrs.get("settings", {}),
        }
        for trial in sorted(_ended(study), key=_rank, reverse=True)
    ]
    write_atomically(work / "trials.json", json.dumps(rows, indent=1).encode() + b"\n")


def _best(study: optuna.Study) -> Best:
    start, ended = tuple(study.user_attrs["start"]), _ended(study)
    measured = [trial for trial in ended if trial.value is not None]
    if not measured:
        raise TrainingError(f"all {len(ended)} trials failed: narrow the ranges of [tune], above all the learning rate")
    best = max(measured, key=_rank)
    recall, _ = _rank(best)
    if _rank(best) <= start:
        return Best({}, start[0], start[0], len(ended))
    return Best(best.user_attrs["settings"], recall, start[0], len(ended))


def _rank(trial: FrozenTrial) -> tuple[float, float]:
    """Recall, and NDCG for trials of the same; below all others one that failed."""
    return -1.0 if trial.value is None else trial.value, trial.user_attrs.get("ndcg", -1.0)
