"""The profile: which steps of a training it holds, and what is said where it holds none."""

from __future__ import annotations

import pytest
import tensorflow as tf

from trainer.tensorboard import Profiler


@pytest.fixture
def recorded(monkeypatch) -> list[str]:
    calls: list[str] = []
    monkeypatch.setattr(tf.profiler.experimental, "start", lambda folder: calls.append(f"start {folder}"))
    monkeypatch.setattr(tf.profiler.experimental, "stop", lambda: calls.append("stop"))
    return calls


def train(steps: int, profiler: Profiler) -> None:
    for _ in range(steps):
        profiler.before_step()
    profiler.stop()


@pytest.mark.parametrize("steps", [11, 12, 13, 30])
def test_a_profile_begins_after_ten_steps(tmp_path, recorded, caplog, steps):
    train(steps, Profiler(tmp_path, 2))
    assert recorded == [f"start {tmp_path}", "stop"]
    assert caplog.messages == []


@pytest.mark.parametrize("steps", [0, 8, 10])
def test_a_training_that_ends_before_the_profile_begins_says_so(tmp_path, recorded, caplog, steps):
    train(steps, Profiler(tmp_path, 2))
    assert recorded == []
    (message,) = caplog.messages
    assert f"trained {steps} steps" in message
    assert "[train] profile_steps" in message
    assert "more than 10 steps" in message


def test_no_profile_is_missed_that_nobody_asked_for(tmp_path, recorded, caplog):
    train(3, Profiler(tmp_path, 0))
    train(30, Profiler(tmp_path, 0))
    assert (recorded, caplog.messages) == ([], [])
