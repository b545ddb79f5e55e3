"""The training loop: checkpoints, resume, progress and the guard against NaN.

<work>/
  fingerprint        what is trained from what; another one's checkpoints are thrown away
  checkpoints/       TensorFlow checkpoints: weights, optimizer, step
  tensorboard/       event files (AIP_TENSORBOARD_LOG_DIR instead, where Vertex AI sets it)
"""

from __future__ import annotations

import logging
import math
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import tensorflow as tf

from lockstep.errors import TrainingError
from lockstep.model_sections import TrainSection
from lockstep.storage import write_atomically
from trainer.input_pipeline import TrainingRecords
from trainer.two_tower import TwoTowerModel

_log = logging.getLogger(__name__)
_SECONDS_BETWEEN_LINES = 10.0
_STEPS_BETWEEN_LOOKS = 50


@dataclass
class _Progress:
    """What has happened since the last line."""

    step: int
    loss: float
    since: float

    def add(self, loss: float, steps: int) -> None:
        self.loss += loss * steps


class TrainingLoop:
    """Trains a model for the configured epochs, from its newest checkpoint on if there is one."""

    def __init__(self, model: TwoTowerModel, records: TrainingRecords, section: TrainSection, work: Path) -> None:
        self.model = model
        self.records = records
        self.section = section
        self.total_steps = records.steps_per_epoch * section.epochs
        self.step = tf.Variable(0, dtype=tf.int64, trainable=False)
        self.loss_sum = tf.Variable(0.0, dtype=tf.float32, trainable=False)
        self.model.optimizer = build_optimizer(section, self.total_steps)
        self.model.optimizer.build(self.model.trainable_variables)
        checkpoint = tf.train.Checkpoint(model=model, optimizer=self.model.optimizer, step=self.step)
        self.checkpoints = tf.train.CheckpointManager(checkpoint, str(work / "checkpoints"), max_to_keep=2)
        logs = os.environ.get("AIP_TENSORBOARD_LOG_DIR") or str(work / "tensorboard")
        self.summaries = tf.summary.create_file_writer(logs)
        self._train_step = tf.function(self._one_step, reduce_retracing=True)

    def run(self) -> None:
        """Train to the end.

        Raises:
            TrainingError: the loss or a weight is no number any more, or the records do not fit the model.
        """
        if self.checkpoints.restore_or_initialize():
            _log.info(
                "resuming at step %d of %d from %s", self.step, self.total_steps, self.checkpoints.latest_checkpoint
            )
        started, first = time.monotonic(), int(self.step)
        with self.summaries.as_default():
            for epoch in range(first // self.records.steps_per_epoch, self.section.epochs):
                self._run_epoch(epoch)
        seconds, steps = time.monotonic() - started, int(self.step) - first
        _log.info("trained %d steps in %.0f s: %s", steps, seconds, _rate(steps * self.records.batch_size, seconds))

    def _run_epoch(self, epoch: int) -> None:
        per_epoch = self.records.steps_per_epoch
        begun = _Progress(int(self.step), 0.0, time.monotonic())
        looked, end = int(self.step), (epoch + 1) * per_epoch
        try:
            for batch in self.records.batches(epoch, skip=int(self.step) - epoch * per_epoch):
                self._train_step(batch)
                step = int(self.step)
                save = step % self.section.checkpoint_every_steps == 0 or step == end
                if save or step - looked >= _STEPS_BETWEEN_LOOKS:
                    begun.add(self._look(looked, step), step - looked)
                    looked = step
                    begun = self._report(epoch, begun, step, force=step == end)
                if save:
                    self._save()
        except tf.errors.InvalidArgumentError as error:
            raise TrainingError(
                f"a training record does not fit features.json ({_first_line(error)}): rerun generate_examples"
            ) from error
        if int(self.step) < end:
            raise TrainingError(
                f"epoch {epoch + 1} ended after step {int(self.step)} of {end}: there are fewer training records than "
                f"the {self.records.rows} of the tag of the examples; rerun generate_examples"
            )

    def _one_step(self, batch: dict[str, tf.Tensor]) -> None:
        with tf.GradientTape() as tape:
            loss = self.model.compute_loss(batch, training=True)
        variables = self.model.trainable_variables
        self.model.optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        self.loss_sum.assign_add(loss)
        self.step.assign_add(1)

    def _look(self, since: int, step: int) -> float:
        """The mean loss since the last look, which must be a number."""
        loss = float(self.loss_sum) / max(step - since, 1)
        self.loss_sum.assign(0.0)
        if not math.isfinite(loss):
            raise TrainingError(f"the loss is {loss} between steps {since} and {step}: {self._remedy()}")
        tf.summary.scalar("loss", loss, step=step)
        return loss

    def _save(self) -> None:
        for variable in self.model.trainable_variables:
            if not bool(tf.reduce_all(tf.math.is_finite(variable))):
                raise TrainingError(f"{variable.name} holds NaN or infinity at step {int(self.step)}: {self._remedy()}")
        self.checkpoints.save(checkpoint_number=int(self.step))
        self.summaries.flush()

    def _report(self, epoch: int, progress: _Progress, step: int, *, force: bool) -> _Progress:
        now = time.monotonic()
        seconds, steps = now - progress.since, step - progress.step
        if not force and seconds < _SECONDS_BETWEEN_LINES:
            return progress
        examples = steps * self.records.batch_size
        _log.info(
            "epoch %d of %d, step %d of %d: loss %.4f, %s, %.0f s to go",
            epoch + 1,
            self.section.epochs,
            step,
            self.total_steps,
            progress.loss / steps,
            _rate(examples, seconds),
            seconds / steps * (self.total_steps - step),
        )
        tf.summary.scalar("examples_per_second", examples / max(seconds, 1e-9), step=step)
        return _Progress(step, 0.0, now)

    def _remedy(self) -> str:
        return f"lower [train] learning_rate ({self.section.learning_rate}) or look for extreme numbers in the features"


def build_optimizer(section: TrainSection, total_steps: int) -> tf.keras.optimizers.Optimizer:
    """The configured optimizer and its learning rate schedule."""
    rate = section.learning_rate
    if section.decay == "cosine":
        rate = tf.keras.optimizers.schedules.CosineDecay(rate, max(total_steps, 1))
    if section.optimizer == "adagrad":
        return tf.keras.optimizers.Adagrad(rate)
    return tf.keras.optimizers.Adam(rate)


def prepare_work(work: Path, fingerprint: str) -> None:
    """Make the folder ready; checkpoints of another model or of other inputs are removed."""
    path = work / "fingerprint"
    if not path.exists() or path.read_text(encoding="utf-8") != fingerprint:
        for folder in (work / "checkpoints", work / "tensorboard"):
            if folder.exists():
                _log.warning("%s is of other inputs or settings: removed", folder)
                shutil.rmtree(folder)
        work.mkdir(parents=True, exist_ok=True)
        write_atomically(path, fingerprint.encode())


def _rate(examples: int, seconds: float) -> str:
    return f"{examples / max(seconds, 1e-9):,.0f} examples/s"


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
