"""The training job: examples and preprocessing in, both towers out."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path

from lockstep.model_sections import ModelSection, TrainSection
from lockstep.tags import Artifact, Kind, Tag, open_artifact
from lockstep.version import ModelVersion
from trainer.encoding import EncodedFeatures, Side, check_same_features, check_same_origin
from trainer.export import export_tower
from trainer.input_pipeline import open_training_records
from trainer.loop import TrainingLoop, prepare_work
from trainer.towers import TowerNetwork, build_towers
from trainer.two_tower import TwoTowerModel

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
) -> Tag:
    """Train both towers and export them.

    A killed run that is started again with the same `work` goes on from its newest checkpoint and ends with the
    weights of a run that was never killed.

    Args:
        examples: input, kind `examples`.
        preprocessing: input, kind `preprocessing`, of the same run.
        query_tower: output, kind `query_tower`.
        candidate_tower: output, kind `candidate_tower`.
        work: checkpoints and TensorBoard logs; kept over a crash, no artifact.

    Returns:
        The tag of the query tower; the candidate tower is complete before it is written.

    Raises:
        InputMismatchError: the inputs were not made together.
        TrainingError: there is nothing to train on, or the loss is no number.
    """
    records_artifact = open_artifact(examples, Kind.EXAMPLES)
    preprocessing_artifact = open_artifact(preprocessing, Kind.PREPROCESSING)
    check_same_origin(records_artifact, preprocessing_artifact)
    features = check_same_features(records_artifact, preprocessing_artifact)
    prepare_work(work, _fingerprint(records_artifact, preprocessing_artifact, model_version, model, train))
    trained = train_model(records_artifact, features, work, model, train)
    inputs = {"examples": records_artifact.tag, "preprocessing": preprocessing_artifact.tag}
    exports: tuple[tuple[Side, TowerNetwork, Path], ...] = (
        ("candidate", trained.candidate_tower, candidate_tower),
        ("query", trained.query_tower, query_tower),
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
    examples: Artifact, features: EncodedFeatures, work: Path, model: ModelSection, train: TrainSection
) -> TwoTowerModel:
    """Train both towers in memory.

    Args:
        work: checkpoints and TensorBoard logs; training goes on from the newest checkpoint in it.
    """
    records = open_training_records(
        examples, features, batch_size=train.batch_size, shuffle_buffer=train.shuffle_buffer, seed=train.seed
    )
    query_tower, candidate_tower = build_towers(features, model, train.seed)
    two_tower = TwoTowerModel(
        query_tower, candidate_tower, temperature=model.temperature, half_life_days=train.half_life_days
    )
    weights = sum(int(variable.shape.num_elements()) for variable in two_tower.trainable_variables)
    _log.info("%d training examples, batches of %d, %d weights", records.rows, records.batch_size, weights)
    TrainingLoop(two_tower, records, train, work).run()
    return two_tower


def _fingerprint(
    examples: Artifact, preprocessing: Artifact, version: ModelVersion, model: ModelSection, train: TrainSection
) -> str:
    facts = [examples.tag.digest, preprocessing.tag.digest, int(version), model.to_dict(), train.to_dict()]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
