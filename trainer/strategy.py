"""Where a training runs: one device, the GPUs of a machine, or several machines; in which precision, and compiled.

Several workers find one another through TF_CONFIG, as Vertex AI and Kubeflow set it. The first of them, the chief,
writes what is kept.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from lockstep.errors import ConfigError, TrainingError
from lockstep.model_sections import TrainSection
from trainer.input_pipeline import TrainingRecords

_JOBS = ("chief", "worker")


@dataclass(frozen=True)
class _Cluster:
    """The machines that train together, by job, and which of them this one is."""

    addresses: dict[str, list[str]]
    job: str
    index: int


def worker_count() -> int:
    """How many machines train together, by TF_CONFIG.

    Raises:
        ConfigError: TF_CONFIG names no cluster of a chief and workers with a place for this machine.
    """
    return sum(len(addresses) for addresses in _cluster().addresses.values()) or 1


def is_chief() -> bool:
    """Whether this process writes checkpoints and artifacts: the only worker, the `chief`, or else worker 0."""
    cluster = _cluster()
    if worker_count() == 1 or cluster.job == "chief":
        return True
    return "chief" not in cluster.addresses and (cluster.job, cluster.index) == ("worker", 0)


def build_strategy(section: TrainSection) -> tf.distribute.Strategy:
    """The configured strategy; with several workers, it waits for all of them.

    Raises:
        ConfigError: TF_CONFIG is wrong in itself.
        TrainingError: the strategy does not go with TF_CONFIG, or replicas cannot share the batch.
    """
    workers, wanted = worker_count(), section.strategy
    if wanted == "auto":
        several = len(tf.config.list_physical_devices("GPU")) > 1
        wanted = "multi_worker" if workers > 1 else "mirrored" if several else "one_device"
    if (wanted == "multi_worker") != (workers > 1):
        raise TrainingError(
            f"[train] strategy is {section.strategy!r}, and TF_CONFIG names {workers} workers: "
            "leave it at 'auto', or set TF_CONFIG for the strategy"
        )
    if wanted == "multi_worker":
        # Before TensorFlow has done anything else in this process, or it refuses.
        return tf.distribute.MultiWorkerMirroredStrategy()
    if wanted == "mirrored":
        if not os.environ.get("TF_CONFIG", "unset").strip():
            del os.environ["TF_CONFIG"]  # TensorFlow takes an empty one for broken JSON
        devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
        return tf.distribute.MirroredStrategy([device.name for device in devices])
    return tf.distribute.get_strategy()


def check_batch(batch_size: int, strategy: tf.distribute.Strategy) -> None:
    """Refuse a batch that the replicas cannot share evenly.

    Raises:
        TrainingError: it says which sizes would do.
    """
    replicas = strategy.num_replicas_in_sync
    if batch_size % replicas:
        below = batch_size - batch_size % replicas
        raise TrainingError(
            f"{replicas} replicas cannot share a batch of {batch_size} evenly: "
            f"set [train] batch_size to {below or replicas} or {below + replicas}"
        )


def distribute(
    records: TrainingRecords, strategy: tf.distribute.Strategy, epoch: int, skip: int
) -> tf.data.Dataset | tf.distribute.DistributedDataset:
    """The batches of an epoch from step `skip` on, each replica's part by itself.

    A batch is not split once it is made: the elements of its sequences have a first dimension of their own.
    """

    def batches(context: tf.distribute.InputContext) -> tf.data.Dataset:
        return records.batches(
            epoch,
            skip,
            replicas=strategy.num_replicas_in_sync,
            worker=context.input_pipeline_id,
            workers=context.num_input_pipelines,
        )

    return strategy.distribute_datasets_from_function(batches)


@contextmanager
def precision(section: TrainSection) -> Iterator[None]:
    """Layers that are built within multiply in half precision where that is configured."""
    if not section.mixed_precision:
        yield
        return
    policy = tf.keras.mixed_precision.global_policy()
    # float16 is what every GPU multiplies fast, bfloat16 what CPUs do.
    on_gpu = bool(tf.config.list_physical_devices("GPU"))
    tf.keras.mixed_precision.set_global_policy("mixed_float16" if on_gpu else "mixed_bfloat16")
    try:
        yield
    finally:
        tf.keras.mixed_precision.set_global_policy(policy)


@contextmanager
def compiled(section: TrainSection) -> Iterator[None]:
    """What TensorFlow runs within is compiled by XLA where that is configured, and where XLA has the operation.

    It has none of the sparse ones that sequences are pooled with, so the step as a whole cannot be compiled: the dense
    stretches between them are, each by itself.
    """
    if not section.xla:
        yield
        return
    # CPUs need the flag as well; TensorFlow reads it once, when a process first asks it for its devices.
    os.environ["TF_XLA_FLAGS"] = f"{os.environ.get('TF_XLA_FLAGS', '')} --tf_xla_cpu_global_jit".strip()
    before = tf.config.optimizer.get_jit()
    tf.config.optimizer.set_jit("autoclustering")
    try:
        yield
    finally:
        tf.config.optimizer.set_jit(before)


def _cluster() -> _Cluster:
    """What TF_CONFIG says; no machines where it is not set, or has no cluster."""
    text = os.environ.get("TF_CONFIG", "")
    try:
        config = json.loads(text) if text.strip() else {}
    except ValueError as error:
        raise _refused(f"it is no JSON ({error})") from error
    if not isinstance(config, dict):
        raise _refused(f"it is {config!r}")
    cluster, task = config.get("cluster", {}), config.get("task")
    _check_jobs(cluster)
    if not cluster:
        return _Cluster({}, "worker", 0)
    places = {(job, str(index)): index for job in cluster for index in range(len(cluster[job]))}
    place = (str(task.get("type")), str(task.get("index"))) if isinstance(task, dict) else None
    if place not in places:
        raise _refused(f'"task" is {task!r}, which is not in the cluster {cluster}')
    return _Cluster(cluster, place[0], places[place])


def _check_jobs(cluster: Any) -> None:
    if not isinstance(cluster, dict):
        raise _refused(f'"cluster" is {cluster!r}')
    for job, addresses in cluster.items():
        if job not in _JOBS:
            raise _refused(f"the cluster has the job {job!r}")
        named = isinstance(addresses, list) and all(isinstance(address, str) and address for address in addresses)
        if not named or not addresses:
            raise _refused(f"the addresses of {job!r} are {addresses!r}")
    if len(cluster.get("chief", [])) > 1:
        raise _refused(f"'chief' has {len(cluster['chief'])} addresses")


def _refused(found: str) -> ConfigError:
    return ConfigError(
        f'TF_CONFIG: {found}; expected an object with "cluster", a list of addresses for each of the jobs '
        '"chief" (one address) and "worker", and "task", the type and the index of this machine among them. '
        "Mend it, or unset it to train on this machine alone; on Vertex AI leave out the worker pools 2 and 3, "
        "of parameter servers and evaluators, which Lockstep does not use"
    )
