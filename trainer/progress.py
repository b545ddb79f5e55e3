"""A line every ten seconds: where the training is, how fast, and how long it has to go."""

from __future__ import annotations

import logging
import time

_log = logging.getLogger(__name__)
_SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """The progress of one epoch.

    Args:
        name: of the epoch, for people.
        step: the step that it goes on from.
        total_steps: of the whole training.
        batch_size: examples a step.
    """

    def __init__(self, name: str, step: int, total_steps: int, batch_size: int) -> None:
        self._name = name
        self._step = step
        self._total_steps = total_steps
        self._batch_size = batch_size
        self._loss = 0.0
        self._looked = step
        self._since = time.monotonic()

    def report(self, step: int, loss: float, *, force: bool) -> float | None:
        """Take a look in, and log a line if it is time.

        Args:
            loss: mean since the last look.
            force: log at any time.

        Returns:
            Examples a second since the last line, where one was logged.
        """
        self._loss += loss * (step - self._looked)
        self._looked = step
        now = time.monotonic()
        seconds, steps = now - self._since, step - self._step
        if not force and seconds < _SECONDS_BETWEEN_LINES:
            return None
        speed = rate(steps * self._batch_size, seconds)
        _log.info(
            "%s, step %d of %d: loss %.4f, %s, %.0f s to go",
            self._name,
            step,
            self._total_steps,
            self._loss / max(steps, 1),
            f"{speed:,.0f} examples/s",
            seconds / max(steps, 1) * (self._total_steps - step),
        )
        self._step, self._loss, self._since = step, 0.0, now
        return speed


def rate(examples: int, seconds: float) -> float:
    """Examples a second."""
    return examples / max(seconds, 1e-9)
