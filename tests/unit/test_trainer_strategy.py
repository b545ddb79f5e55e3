"""Several replicas and several workers train as one device does; and half precision, in a process of its own each."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from click.testing import CliRunner

from lockstep.errors import ConfigError, TrainingError
from lockstep.model_sections import TrainSection
from tests.unit.trainer_artifacts import Artifacts, make_artifacts
from trainer.command import main
from trainer.strategy import build_strategy, check_batch, is_chief, precision, worker_count

FIT = """
import sys
from pathlib import Path
import lockstep
import tensorflow as tf
devices, made, work, out, settings = int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4], sys.argv[5:]
if devices > 1:
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * devices)
import json
import numpy as np
from lockstep.model_sections import ModelSection, TrainSection
from lockstep.tags import Kind, open_artifact
from trainer import loop, task
loop._STEPS_BETWEEN_LOOKS = 1
look, losses, seen = loop.TrainingLoop._look, [], {}
def looking(self, since, step, *rest, **named):
    losses.append(float(self.loss_sum.numpy()))
    seen.update(replicas=self.strategy.num_replicas_in_sync, batch_size=self.records.batch_size)
    return look(self, since, step, *rest, **named)
loop.TrainingLoop._look = looking
model = ModelSection(embedding_dim=16, query={"hidden": []}, candidate={"hidden": [24]})
train = dict(batch_size=100, epochs=2, learning_rate=0.02, negatives="full", average_weights=0.9,
             checkpoint_every_steps=1000, early_stopping=5)
train = TrainSection.model_validate(train | json.loads(settings[0]))
examples = open_artifact(made / "examples", Kind.EXAMPLES)
trained = task.train_model(examples, open_artifact(made / "preprocessing", Kind.PREPROCESSING), work, model, train)
weights = {f"w{i}": v.numpy() for i, v in enumerate(trained.trainable_variables)}
if train.logq == "streaming":
    weights |= {"times": trained.negatives.streaming.times.numpy(), "gap": trained.negatives.streaming.gap.numpy()}
np.savez(out, losses=losses, **seen, **weights)
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Artifacts:
    """Examples of unequal weight, so that a replica's part of a batch weighs more than the other's."""
    return make_artifacts(tmp_path_factory.mktemp("made"), rows=1_000, queries=20, weighed=True)


def begin(made: Artifacts, work: Path, out: Path, devices: int, settings: dict, **environment: str) -> subprocess.Popen:
    command = [sys.executable, "-c", FIT, str(devices), str(made.examples.parent), str(work), str(out)]
    return subprocess.Popen(
        [*command, json.dumps(settings)], env=os.environ | environment, stderr=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen) -> None:
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors


@pytest.fixture(scope="module")
def one_device(made, tmp_path_factory) -> dict[str, np.ndarray]:
    folder = tmp_path_factory.mktemp("one")
    finish(begin(made, folder / "work", folder / "out.npz", 1, {}))
    return dict(np.load(folder / "out.npz"))


def assert_same(found: Path, expected: dict[str, np.ndarray]) -> None:
    """Two replicas of 50 examples make the step of one of 100, whatever each weighs: every candidate is compared."""
    arrays = dict(np.load(found))
    assert (len(arrays["losses"]), arrays["replicas"], expected["replicas"]) == (20, 2, 1)
    np.testing.assert_allclose(arrays["losses"], expected["losses"], rtol=1e-4)
    assert arrays["losses"][-1] < arrays["losses"][0] - 0.5
    for name in expected:
        if name.startswith("w"):
            np.testing.assert_allclose(arrays[name], expected[name], atol=2e-3, err_msg=name)


def test_two_replicas_have_the_loss_curve_of_one_device(made, one_device, tmp_path):
    finish(begin(made, tmp_path / "work", tmp_path / "out.npz", 2, {"strategy": "mirrored"}))
    assert_same(tmp_path / "out.npz", one_device)


@pytest.mark.parametrize(
    "settings",
    [
        {"negatives": "in_batch", "logq": "streaming"},
        {"negatives": "mixed", "logq": "streaming", "uniform_negatives": 30},
        {"negatives": "mixed", "logq": "data", "uniform_negatives": 30},
    ],
    ids=lambda settings: f"{settings['negatives']}-{settings['logq']}",
)
def test_two_replicas_with_sampled_negatives_learn(made, tmp_path, settings):
    settings = {"strategy": "mirrored", "early_stopping": None, **settings}
    finish(begin(made, tmp_path / "work", tmp_path / "out.npz", 2, settings))
    arrays = dict(np.load(tmp_path / "out.npz"))
    assert (len(arrays["losses"]), arrays["replicas"]) == (20, 2)
    assert arrays["losses"][-5:].mean() < arrays["losses"][:5].mean() - 0.5
    if settings["logq"] == "streaming":
        # What the first replica has seen: 50 examples in each of 20 steps.
        assert arrays["times"].sum() == 1_000
        np.testing.assert_array_equal(arrays["gap"] > 0, arrays["times"] > 0)
        assert np.all(np.isfinite(arrays["gap"]))


def test_two_replicas_share_a_batch_of_all_records(tmp_path):
    """Of 31 records each has 15, and one is left out."""
    few = make_artifacts(tmp_path / "made", rows=31, queries=5)
    settings = {"strategy": "mirrored", "batch_size": 5_000}
    finish(begin(few, tmp_path / "work", tmp_path / "out.npz", 2, settings))
    arrays = np.load(tmp_path / "out.npz")
    assert (arrays["batch_size"], arrays["replicas"], len(arrays["losses"])) == (30, 2, 2)


def test_two_workers_have_the_loss_curve_of_one_device_and_the_chief_writes(made, one_device, tmp_path):
    ports = []
    for _ in range(2):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            ports.append(f"localhost:{free.getsockname()[1]}")
    cluster = {"chief": ports[:1], "worker": ports[1:]}
    processes = [
        begin(made, tmp_path / "work", tmp_path / f"{task}.npz", 1, {},
              TF_CONFIG=json.dumps({"cluster": cluster, "task": {"type": task, "index": 0}}))
        for task in cluster
    ]  # fmt: skip
    try:
        for process in processes:
            finish(process)
    finally:
        for process in processes:
            process.kill()
    for task in cluster:
        assert_same(tmp_path / f"{task}.npz", one_device)
    assert sorted(path.name for path in (tmp_path / "work" / "checkpoints").glob("*.json")) == [
        "step-10.json", "step-20.json"
    ]  # fmt: skip
    assert len(list((tmp_path / "work" / "tensorboard").glob("events*"))) == 1


def test_half_precision_and_xla_have_the_loss_curve_to_their_precision(made, one_device, tmp_path):
    settings = {"mixed_precision": True, "xla": True}
    dump = f"--xla_dump_to={tmp_path / 'hlo'}"
    finish(begin(made, tmp_path / "work", tmp_path / "out.npz", 1, settings, XLA_FLAGS=dump))
    np.testing.assert_allclose(np.load(tmp_path / "out.npz")["losses"], one_device["losses"], rtol=0.02)
    compiled = [path.read_text() for path in (tmp_path / "hlo").glob("*before_optimizations.txt")]
    assert any("bf16[50," in text or "bf16[100," in text for text in compiled)


def test_tf_config_says_who_is_the_chief(monkeypatch):
    def start_as(kind: str, index: int, **cluster: list[str]) -> tuple[int, bool]:
        monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": cluster, "task": {"type": kind, "index": index}}))
        return worker_count(), is_chief()

    assert (worker_count(), is_chief()) == (1, True)
    assert start_as("chief", 0, chief=["a:1"]) == (1, True)
    assert start_as("chief", 0, chief=["a:1"], worker=["b:1", "c:1"]) == (3, True)
    assert start_as("worker", 0, chief=["a:1"], worker=["b:1", "c:1"]) == (3, False)
    assert start_as("worker", 0, worker=["b:1", "c:1"]) == (2, True)
    assert start_as("worker", 1, worker=["b:1", "c:1"]) == (2, False)
    with pytest.raises(TrainingError, match="TF_CONFIG names 2 workers"):
        build_strategy(TrainSection(strategy="mirrored"))


ALONE = {
    "empty": "",
    "blank": " ",
    "no-cluster": "{}",
    "empty-cluster": '{"environment": "cloud", "cluster": {}, "task": {}}',
    "single-replica": '{"cluster": {"chief": ["localhost:2222"]}, "environment": "cloud", "job": {"scale": "CUSTOM"}, '
    '"task": {"type": "chief", "index": 0, "trial": "1", "cloud": "x"}}',
    "text-index": '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": "0"}}',
}


@pytest.mark.parametrize("value", ALONE.values(), ids=ALONE)
def test_a_tf_config_of_one_machine_trains_alone(monkeypatch, value):
    monkeypatch.setenv("TF_CONFIG", value)
    assert (worker_count(), is_chief()) == (1, True)
    assert build_strategy(TrainSection()).num_replicas_in_sync == 1
    assert build_strategy(TrainSection(strategy="mirrored")).num_replicas_in_sync == 1


TWO = '{"cluster": {"worker": ["a:1", "b:1"]}, "task": %s}'
BROKEN = [
    ("{broken", "it is no JSON (Expecting property name enclosed in double quotes: line 1 column 2 (char 1))"),
    ("[]", "it is []"),
    ("0", "it is 0"),
    ('{"cluster": null}', '"cluster" is None'),
    ('{"cluster": ["a:1"]}', "\"cluster\" is ['a:1']"),
    ('{"cluster": {"worker": "a:1"}}', "the addresses of 'worker' are 'a:1'"),
    ('{"cluster": {"worker": []}}', "the addresses of 'worker' are []"),
    ('{"cluster": {"worker": ["a:1", 2]}}', "the addresses of 'worker' are ['a:1', 2]"),
    ('{"cluster": {"chief": ["a:1", "b:1"]}}', "'chief' has 2 addresses"),
    ('{"cluster":{"ps":["a:1"]},"task":{"type":"ps","index":0}}', "the cluster has the job 'ps'"),
    ('{"cluster": {"chief": ["a:1"], "evaluator": ["b:1"]}}', "the cluster has the job 'evaluator'"),
    ('{"cluster":{"worker":["a:1","b:1"]}}', '"task" is None'),
    (TWO % '{"type": "evaluator", "index": 0}', "\"task\" is {'type': 'evaluator', 'index': 0}"),
    (TWO % '{"type": "worker", "index": 2}', "\"task\" is {'type': 'worker', 'index': 2}"),
    (TWO % '{"type": "worker", "index": -1}', "\"task\" is {'type': 'worker', 'index': -1}"),
    (TWO % '{"type": "worker", "index": true}', "\"task\" is {'type': 'worker', 'index': True}"),
    (TWO % '{"type": ["worker"], "index": 0}', "\"task\" is {'type': ['worker'], 'index': 0}"),
    (TWO % '{"type": "worker"}', "\"task\" is {'type': 'worker'}"),
    ('{"cluster":{"worker":["localhost:2222"]},"task":{"type":"worker","index":5}}', "'index': 5}"),
]


@pytest.mark.parametrize(("value", "found"), BROKEN, ids=range(len(BROKEN)))
def test_a_tf_config_that_names_no_place_in_a_cluster_is_refused(monkeypatch, value, found):
    monkeypatch.setenv("TF_CONFIG", value)
    for ask in (worker_count, is_chief, lambda: build_strategy(TrainSection())):
        with pytest.raises(ConfigError) as refused:
            ask()
        assert str(refused.value).startswith("TF_CONFIG: ")
        assert found in str(refused.value)


def test_the_command_line_says_what_is_wrong_with_tf_config(made, tmp_path):
    config = tmp_path / "config.toml"
    config.write_text('[schema]\nquery.country.type = "categorical"\ncandidate.genre.type = "categorical"\n')
    line = ["--config", config, "--examples", made.examples, "--preprocessing", made.preprocessing, "--run", "r",
            "--model-version", "1", "--query-tower", tmp_path / "q", "--candidate-tower", tmp_path / "c",
            "--work", tmp_path / "work"]  # fmt: skip
    environment = {"TF_CONFIG": '{"cluster": {"ps": ["a:1"]}, "task": {"type": "ps", "index": 0}}'}
    result = CliRunner().invoke(main, [str(part) for part in line], env=environment)
    assert (result.exit_code, type(result.exception)) == (1, SystemExit)
    assert result.output.startswith("Error: TF_CONFIG: the cluster has the job 'ps'; expected ")


def test_several_workers_without_tf_config_are_refused():
    with pytest.raises(TrainingError, match="'multi_worker', and TF_CONFIG names 1 workers"):
        build_strategy(TrainSection(strategy="multi_worker"))


def test_a_batch_that_replicas_cannot_share_is_refused():
    class OfThree:
        num_replicas_in_sync = 3

    check_batch(1023, OfThree())
    with pytest.raises(TrainingError, match="batch_size to 1023 or 1026"):
        check_batch(1024, OfThree())


def test_precision_lasts_as_long_as_the_training():
    before = tf.keras.mixed_precision.global_policy().name
    with precision(TrainSection(mixed_precision=True)):
        assert tf.keras.layers.Dense(1).compute_dtype in ("bfloat16", "float16")
        assert tf.keras.layers.Dense(1).variable_dtype == "float32"
    assert tf.keras.mixed_precision.global_policy().name == before
