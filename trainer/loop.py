"""The training loop: steps, checkpoints, resume, validation, and the guard against NaN.

<work>/
  fingerprint        what is trained from what; another one's checkpoints are thrown away
  checkpoints/       the last three (trainer.checkpoints): weights, optimizer, step, moving averages, the best epoch
  best/              the weights of the best epoch by validation recall, where [train] early_stopping asks for it
  tensorboard/       logs (AIP_TENSORBOARD_LOG_DIR instead, where Vertex AI sets it)
"""

from __future__ import annotations

import logging
import math
import shutil
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import tensorflow as tf

from lockstep.errors import TrainingError
from lockstep.model_sections import TrainSection
from lockstep.storage import write_atomically
from trainer.averaging import AveragedWeights
from trainer.checkpoints import Checkpoints
from trainer.input_pipeline import TrainingRecords
from trainer.optimizer import build_optimizer, learning_rate
from trainer.progress import Progress, rate
from trainer.strategy import check_batch, distribute, is_chief
from trainer.tensorboard import Profiler, TensorBoard, log_folder
from trainer.two_tower import TwoTowerModel
from trainer.validation import Best, Measured, Validation

_log = logging.getLogger(__name__)
_STEPS_BETWEEN_LOOKS = 50
_KEPT_CHECKPOINTS = 3


class TrainingLoop:
    """Trains a model for the configured epochs, from its newest checkpoint on if there is one.

    Built and run within the scope of the strategy that the model was built in.

    Args:
        work: where checkpoints and logs go; several workers share it.
        validation: what is measured after each epoch; None for nothing.

    Raises:
        TrainingError: the replicas cannot share the batch, or there is nothing to stop early by.
    """

    def __init__(
        self,
        model: TwoTowerModel,
        records: TrainingRecords,
        section: TrainSection,
        work: Path,
        validation: Validation | None = None,
    ) -> None:
        self.model = model
        self.records = records
        self.section = section
        self.work = work
        self.validation = validation
        self.strategy = tf.distribute.get_strategy()
        check_batch(records.batch_size, self.strategy)
        if section.early_stopping is not None and validation is None:
            raise TrainingError(
                "[train] early_stopping looks at the validation split, which has no queries: "
                "raise [data] validation_share, or leave early_stopping out"
            )
        self.total_steps = records.steps_per_epoch * section.epochs
        self.variables = model.trainable_variables
        self.optimizer = build_optimizer(section, self.total_steps)
        self.optimizer.build(self.variables)
        self.is_scaled = isinstance(self.optimizer, tf.keras.mixed_precision.LossScaleOptimizer)
        self.step = tf.Variable(0, dtype=tf.int64, trainable=False)
        self.loss_sum = tf.Variable(0.0, trainable=False)
        decay = section.average_weights
        self.average = None if decay is None else AveragedWeights(self.variables, decay)
        self.best = Best()
        state = tf.train.Checkpoint(model=model, optimizer=self.optimizer, step=self.step, best=self.best)
        if self.average is not None:
            state.average = self.average
        writes = is_chief()
        self.checkpoints = Checkpoints(state, work / "checkpoints", keep=_KEPT_CHECKPOINTS, writes=writes)
        # Two: a run that was killed between writing one here and one above goes on from the one before.
        self.best_weights = Checkpoints(tf.train.Checkpoint(model=model), work / "best", keep=2, writes=writes)
        self.board = TensorBoard(log_folder(work), writes=writes)
        self._train_step = tf.function(self._one_step, reduce_retracing=True)

    def run(self) -> None:
        """Train to the end, and leave the weights in the model that are to be exported.

        Raises:
            TrainingError: the loss or a weight is no number any more, or the records do not fit the model.
        """
        first = self.checkpoints.restore() or 0
        if first:
            _log.info("resuming at step %d of %d from %s", first, self.total_steps, self.checkpoints.folder)
        started, profiler = time.monotonic(), Profiler(self.board.folder, self.section.profile_steps)
        for epoch in range(first // max(self.records.steps_per_epoch, 1), self.section.epochs):
            if self._is_over():
                break
            self._run_epoch(epoch, profiler)
        profiler.stop()
        seconds, steps = time.monotonic() - started, int(self.step.numpy()) - first
        speed = rate(steps * self.records.batch_size, seconds)
        _log.info("trained %d steps in %.0f s: %s examples/s", steps, seconds, f"{speed:,.0f}")
        self._take_final_weights()

    def _run_epoch(self, epoch: int, profiler: Profiler) -> None:
        per_epoch = self.records.steps_per_epoch
        step, end = int(self.step.numpy()), (epoch + 1) * per_epoch
        looked = step
        progress = Progress(
            f"epoch {epoch + 1} of {self.section.epochs}", step, self.total_steps, self.records.batch_size
        )
        for batch in self._batches(epoch, skip=step - epoch * per_epoch):
            profiler.before_step()
            self._train_step(batch)
            step += 1
            save = step % self.section.checkpoint_every_steps == 0 or step == end
            if save or step - looked >= _STEPS_BETWEEN_LOOKS:
                self._look(looked, step, progress, force=step == end)
                looked = step
            if step == end:
                break
            if save:
                self._save(step)
        if step < end:
            raise TrainingError(
                f"epoch {epoch + 1} ended after step {step} of {end}: there are fewer training records than "
                f"the {self.records.kept} that follow from the tag of the examples; rerun generate_examples"
            )
        self._end_epoch(epoch, step)

    def _batches(self, epoch: int, skip: int) -> Iterator[Any]:
        batches = iter(distribute(self.records, self.strategy, epoch, skip))
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except tf.errors.InvalidArgumentError as error:
                raise TrainingError(
                    f"a training record does not fit features.json ({_first_line(error)}): rerun generate_examples"
                ) from error
            except (tf.errors.DataLossError, tf.errors.NotFoundError) as error:
                raise TrainingError(
                    f"the training records cannot be read to their end ({_first_line(error)}): fetch the artifact "
                    "again, or rerun generate_examples"
                ) from error
            yield batch

    def _end_epoch(self, epoch: int, step: int) -> None:
        self._check_weights(step)
        if self.validation is not None:
            with nullcontext() if self.average is None else self.average.applied():
                measured = self.validation.measure(self.model.query_tower, self.model.candidate_tower)
                better = self.best.add(self._agree(measured.recall), self._agree(measured.ndcg), step)
                if better and self.section.early_stopping is not None:
                    self.best_weights.save(step)
                    # The other workers, too, wait until it is written: it may be what they take at the end.
                    self._agree(measured.recall)
            self._report_validation(epoch, step, measured)
        self.board.histograms(step, self.variables)
        self._save(step)

    def _one_step(self, batch: dict[str, Any]) -> None:
        losses = self.strategy.run(self._replica_step, args=(batch,))
        self.loss_sum.assign_add(self.strategy.reduce(tf.distribute.ReduceOp.SUM, losses, axis=None))
        self.step.assign_add(1)
        if self.average is not None:
            self.average.update(self.step)

    def _replica_step(self, batch: dict[str, Any]) -> tf.Tensor:
        """One replica's part of a step; its loss is a share of the mean over all of them."""
        with tf.GradientTape() as tape:
            loss = self.model.compute_loss(batch, training=True) / self.strategy.num_replicas_in_sync
            scaled = self.optimizer.get_scaled_loss(loss) if self.is_scaled else loss
        gradients = tape.gradient(scaled, self.variables)
        if self.is_scaled:
            gradients = self.optimizer.get_unscaled_gradients(gradients)
        self.optimizer.apply_gradients(zip(gradients, self.variables, strict=True))
        return loss

    def _look(self, since: int, step: int, progress: Progress, *, force: bool) -> None:
        """Look at the mean loss since the last look, which must be a number."""
        loss = float(self.loss_sum.numpy()) / (step - since)
        self.loss_sum.assign(0.0)
        if not math.isfinite(loss):
            raise TrainingError(f"the loss is {loss} between steps {since} and {step}: {self._remedy()}")
        figures = {"loss": loss, "learning_rate": learning_rate(self.optimizer)}
        speed = progress.report(step, loss, force=force)
        if speed is not None:
            figures["examples_per_second"] = speed
        self.board.scalars(step, figures)

    def _save(self, step: int) -> None:
        self._check_weights(step)
        self.checkpoints.save(step)
        self.board.flush()

    def _check_weights(self, step: int) -> None:
        for variable in self.variables:
            if not bool(tf.reduce_all(tf.math.is_finite(variable))):
                raise TrainingError(f"{variable.name} holds NaN or infinity at step {step}: {self._remedy()}")

    def _report_validation(self, epoch: int, step: int, measured: Measured) -> None:
        k = self.section.validation_k
        figures = {f"validation/recall@{k}": measured.recall, f"validation/ndcg@{k}": measured.ndcg}
        self.board.scalars(step, figures)
        _log.info(
            "epoch %d of %d: validation recall@%d %.4f, NDCG@%d %.4f (%.1f s)%s",
            epoch + 1,
            self.section.epochs,
            k,
            measured.recall,
            k,
            measured.ndcg,
            measured.seconds,
            ", the best so far" if self.best.step == step else f"; the best was {self.best.recall:.4f}",
        )

    def _agree(self, value: float) -> float:
        """The mean over the workers, whose roundings may differ: all of them have to stop at the same epoch."""
        values = self.strategy.run(lambda: tf.constant(value, tf.float64))
        return float(self.strategy.reduce(tf.distribute.ReduceOp.MEAN, values, axis=None))

    def _is_over(self) -> bool:
        patience = self.section.early_stopping
        if patience is None or self.best.epochs_since < patience:
            return False
        _log.info("stopped early: %d epochs without a better validation recall", patience)
        return True

    def _take_final_weights(self) -> None:
        if self.section.early_stopping is not None:
            if not self.best_weights.restore_step(self.best.step):
                raise TrainingError(
                    f"the weights of the best epoch (step {self.best.step}) in {self.best_weights.folder} are lost: "
                    f"remove {self.work} and train again"
                )
            _log.info("took the weights of step %d, the best epoch's", self.best.step)
        elif self.average is not None:
            self.average.apply()

    def _remedy(self) -> str:
        saved = self.checkpoints.steps()
        kept = f"; the last good checkpoint, of step {saved[-1]}, is in {self.checkpoints.folder}" if saved else ""
        return (
            f"lower [train] learning_rate ({self.section.learning_rate}) or look for extreme numbers in the features"
            + kept
        )


def prepare_work(work: Path, fingerprint: str) -> None:
    """Make the folder ready; checkpoints of another model or of other inputs are removed."""
    path = work / "fingerprint"
    if not path.exists() or path.read_text(encoding="utf-8") != fingerprint:
        for folder in (work / "checkpoints", work / "best", work / "tensorboard"):
            if folder.exists():
                _log.warning("%s is of other inputs or settings: removed", folder)
                shutil.rmtree(folder)
        work.mkdir(parents=True, exist_ok=True)
        write_atomically(path, fingerprint.encode())


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
