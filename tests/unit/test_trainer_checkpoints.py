"""Checkpoints: what is damaged is found out, and the one before is used."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import tensorflow as tf

from trainer.checkpoints import Checkpoints


def open_checkpoints(folder: Path, value: float = 0.0) -> tuple[tf.Variable, Checkpoints]:
    variable = tf.Variable([value] * 1_000)
    return variable, Checkpoints(tf.train.Checkpoint(variable=variable), folder, keep=3)


def save(folder: Path, *steps: int) -> None:
    variable, checkpoints = open_checkpoints(folder)
    for step in steps:
        variable.assign([float(step)] * 1_000)
        checkpoints.save(step)


def test_the_newest_is_restored_and_the_oldest_go(tmp_path):
    save(tmp_path, 9, 10, 11, 100)
    variable, checkpoints = open_checkpoints(tmp_path)
    assert checkpoints.steps() == [10, 11, 100]
    assert not list(tmp_path.glob("step-9*"))
    assert checkpoints.restore() == 100
    assert variable.numpy()[0] == 100.0


def test_an_empty_folder_has_none(tmp_path):
    assert open_checkpoints(tmp_path / "new")[1].restore() is None


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize("damage", [flip, cut, Path.unlink])
@pytest.mark.parametrize("pattern", ["step-3.data*", "step-3.index", "step-3.json"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path, caplog, damage, pattern):
    save(tmp_path, 1, 2, 3)
    (path,) = tmp_path.glob(pattern)
    damage(path)
    variable, checkpoints = open_checkpoints(tmp_path)
    with caplog.at_level(logging.WARNING):
        assert checkpoints.restore() == 2
    assert variable.numpy()[0] == 2.0
    if path.exists() or not pattern.endswith("json"):  # without the marker there never was one
        assert "the checkpoint of step 3 is not used" in caplog.text


def test_what_a_killed_writer_left_is_no_checkpoint_and_goes(tmp_path):
    save(tmp_path, 1)
    (tmp_path / "step-2.data-00000-of-00001.tempstate123").write_bytes(b"half")
    (tmp_path / "step-2.index").write_bytes(b"half")
    _, checkpoints = open_checkpoints(tmp_path)
    assert checkpoints.restore() == 1
    checkpoints.save(3)
    assert not list(tmp_path.glob("step-2*"))


def test_a_worker_that_is_not_the_chief_keeps_nothing(tmp_path):
    Checkpoints(tf.train.Checkpoint(variable=tf.Variable(1.0)), tmp_path / "c", keep=1, writes=False).save(1)
    assert not (tmp_path / "c").exists()
