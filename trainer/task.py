"""The training job: examples and preprocessing in, both towers out. `python -m trainer.task --help` runs it alone."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path

from lockstep import __version__
from lockstep.model_sections import ModelSection, TrainSection
from lockstep.tags import Artifact, Kind, Tag, open_artifact
from lockstep.version import ModelVersion
from trainer.encoding import EncodedFeatures, Side, check_same_features, check_same_origin
from trainer.evaluation.queries import read_catalogue
from trainer.export import export_tower
from trainer.input_pipeline import open_training_records
from trainer.loop import TrainingLoop, prepare_work
from trainer.strategy import build_strategy, compiled, is_chief, precision
from trainer.tensorboard import PROJECTED
from trainer.towers import TowerNetwork, build_towers
from trainer.two_tower import TwoTowerModel
from trainer.validation import embed, open_validation
from trainer.warm_start import WarmStart

_log = logging.getLogger(__name__)


def run(
    *,
    examples: Path,
    preprocessing: Path,
    query_tower: Path,
    candidate_tower: Path,
    work: Path,
    model_version: ModelVersion,
    run_id: str,
    model: ModelSection,
    train: TrainSection,
    warm_start: WarmStart | None = None,
) -> Tag | None:
    """Train both towers and export them.

    A killed run that is started again with the same `work` goes on from its newest checkpoint and ends with the
    weights of a run that was never killed.

    Args:
        examples: input, kind `examples`.
        preprocessing: input, kind `preprocessing`, of the same run.
        query_tower: output, kind `query_tower`.
        candidate_tower: output, kind `candidate_tower`.
        work: checkpoints and TensorBoard logs; kept over a crash, no artifact. Several workers share it.
        warm_start: the version whose weights to begin with; None for a cold start.

    Returns:
        The tag of the query tower; the candidate tower is complete before it is written. None from a worker that is
        not the chief, which exports nothing.

    Raises:
        InputMismatchError: the inputs were not made together.
        TrainingError: there is nothing to train on, or the loss is no number.
    """
    records_artifact = open_artifact(examples, Kind.EXAMPLES)
    preprocessing_artifact = open_artifact(preprocessing, Kind.PREPROCESSING)
    check_same_origin(records_artifact, preprocessing_artifact)
    features = check_same_features(records_artifact, preprocessing_artifact)
    inputs = {"examples": records_artifact.tag, "preprocessing": preprocessing_artifact.tag}
    if warm_start is not None:
        inputs |= warm_start.inputs
    if is_chief():  # before the strategy is built, which waits for all workers: none sees another's checkpoints
        prepare_work(work, _fingerprint(inputs, model_version, model, train))
    trained = train_model(records_artifact, preprocessing_artifact, work, model, train, warm_start)
    if not is_chief():
        return None
    query, candidate = plain_towers(trained, features, model, train)
    exports: tuple[tuple[Side, TowerNetwork, Path], ...] = (
        ("candidate", candidate, candidate_tower),
        ("query", query, query_tower),
    )
    tags = [
        export_tower(
            tower,
            side,
            preprocessing_artifact,
            output,
            model_version=model_version,
            run_id=run_id,
            rows=records_artifact.tag.rows,
            inputs=inputs,
        )
        for side, tower, output in exports
    ]
    _log.info("exported both towers of %s to %s and %s", model_version, query_tower, candidate_tower)
    return tags[-1]


def train_model(
    examples: Artifact,
    preprocessing: Artifact,
    work: Path,
    model: ModelSection,
    train: TrainSection,
    warm_start: WarmStart | None = None,
) -> TwoTowerModel:
    """Train both towers in memory.

    Args:
        work: checkpoints and TensorBoard logs; training goes on from the newest checkpoint in it.
        warm_start: what to begin with where there is no checkpoint.
    """
    features = check_same_features(examples, preprocessing)
    with compiled(train), build_strategy(train).scope(), precision(train):
        records = open_training_records(examples, features, train)
        candidates = records.candidates
        towers = build_towers(features, model, train.seed, train.unknown_id_share)
        if warm_start is not None:
            warm_start.apply(towers, features, preprocessing)
        two_tower = TwoTowerModel(*towers, candidates, records.probability, model, train)
        weights = sum(int(variable.shape.num_elements()) for variable in two_tower.trainable_variables)
        _log.info(
            "%d training examples, %d an epoch, batches of %d, %d weights",
            records.rows,
            records.kept,
            records.batch_size,
            weights,
        )
        validation = open_validation(examples, preprocessing, features, candidates, train)
        loop = TrainingLoop(two_tower, records, train, work, validation)
        loop.run()
        first = {name: values[:PROJECTED] for name, values in candidates.all().items()}
        loop.board.projector(
            embed(two_tower.candidate_tower, first), read_catalogue(examples).ids[:PROJECTED].to_pylist()
        )
    return two_tower


def plain_towers(
    trained: TwoTowerModel, features: EncodedFeatures, model: ModelSection, train: TrainSection
) -> tuple[TowerNetwork, TowerNetwork]:
    """The trained towers as serving wants them: on one device, and in float32 however they were trained."""
    plain = build_towers(features, model, train.seed)
    for tower, source in zip(plain, (trained.query_tower, trained.candidate_tower), strict=True):
        for variable, weight in zip(tower.trainable_variables, source.trainable_variables, strict=True):
            variable.assign(weight.numpy())
        tower.largest = source.largest  # half precision cuts floats earlier, and serving must do as training did
    return plain


def _fingerprint(inputs: dict[str, Tag], version: ModelVersion, model: ModelSection, train: TrainSection) -> str:
    digests = {role: tag.digest for role, tag in inputs.items()}
    facts = [__version__, digests, int(version), model.to_dict(), train.to_dict()]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


if __name__ == "__main__":
    from trainer.command import main

    main(prog_name="python -m trainer.task")
