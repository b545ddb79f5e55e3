"""How this machine is used: the threads of a tower, and its batch size, found by trying."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import resource
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataflow.embed.batches import READ_ROWS, is_out_of_memory
from lockstep.towers import Tower

SMALLEST, LARGEST = 1_024, READ_ROWS
"""Batches that are tried; no more than this is read and encoded at once."""
_WORTH = 1.05
"""A batch twice as large must be so much faster to be taken."""
_SECONDS = 0.02
"""Of trying one size, at least."""
_SHARE = 0.5
"""Of the memory that is free, what a batch may take."""
_OTHER_THREADS = 3
_CGROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)
_log = logging.getLogger(__name__)


def share_cores() -> None:
    """Leave TensorFlow the cores that reading, encoding and writing do not keep busy.

    Threads that wait for one another spin, which on few cores takes from the rest a fifth of what the tower needs.
    """
    import tensorflow as tf

    # A process that has computed before has its threads, and keeps them.
    with contextlib.suppress(RuntimeError):
        tf.config.threading.set_intra_op_parallelism_threads(max(1, (os.cpu_count() or 1) - _OTHER_THREADS))
        tf.config.threading.set_inter_op_parallelism_threads(1)


def find_batch_size(tower: Tower, encoded: Mapping[str, NDArray[Any]]) -> int:
    """The batch size of the most rows a second, on this machine and within its memory.

    Args:
        encoded: some rows, of which batches are made by repeating them.
    """
    meter = MemoryMeter()

    def rate(size: int) -> float:
        batch = {name: values[np.arange(size) % len(values)] for name, values in encoded.items()}
        tower.embed_encoded(batch)  # the first call prepares the graph and its memory
        began, quickest = time.perf_counter(), math.inf
        while time.perf_counter() - began < _SECONDS:
            before = time.perf_counter()
            tower.embed_encoded(batch)
            quickest = min(quickest, time.perf_counter() - before)  # what else runs here only ever adds to it
        return size / quickest

    size, speed = fastest(rate, meter.has_room)
    _log.info("batches of %d rows on %s: the tower alone embeds %.0f rows/s", size, device(), speed)
    return size


def fastest(rate: Callable[[int], float], has_room: Callable[[], bool]) -> tuple[int, float]:
    """Double the size from SMALLEST on, as long as that pays.

    Args:
        rate: rows a second of a size; may find no memory.
        has_room: asked after each size, whether there is memory for twice as much.

    Returns:
        The best size and its rate.
    """
    best, best_rate, size = SMALLEST, 0.0, SMALLEST
    while size <= LARGEST:
        try:
            found = rate(size)
        except Exception as error:
            if not is_out_of_memory(error) or size == 1:
                raise
            if best_rate:
                break
            best = size = size // 2
            continue
        if found < best_rate * _WORTH:
            break
        best, best_rate = size, found
        if size < SMALLEST or not has_room():
            break
        size *= 2
    return best, best_rate


def device() -> str:
    """Where TensorFlow computes, for the log."""
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    return tf.config.experimental.get_device_details(gpus[0]).get("device_name", "a GPU") if gpus else "the CPU"


class MemoryMeter:
    """What batches take of the memory where they are computed: a GPU's where there is one, else this process's."""

    def __init__(self) -> None:
        self._before = _peak()

    def has_room(self) -> bool:
        """Whether a batch of twice the largest so far would fit: what batches have taken so far, twice more."""
        return 2 * max(_peak() - self._before, 0) <= _SHARE * _free()


def _peak() -> int:
    gpu = _gpu_bytes()
    return gpu[0] if gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _free() -> int:
    gpu = _gpu_bytes()
    if gpu:
        return gpu[1]
    free = [_available()]
    for limit, used in _CGROUPS:
        try:
            free.append(int(Path(limit).read_text()) - int(Path(used).read_text()))
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return max(min(free), 0)


def _available() -> int:
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return 2**63


def _gpu_bytes() -> tuple[int, int] | None:
    """Peak and free bytes of TensorFlow's memory on the first GPU."""
    import tensorflow as tf

    if not tf.config.list_logical_devices("GPU"):
        return None
    from tensorflow.python.client import device_lib

    limits = [of.memory_limit for of in device_lib.list_local_devices() if of.device_type == "GPU"]
    info = tf.config.experimental.get_memory_info("GPU:0")
    return int(info["peak"]), int(limits[0]) - int(info["current"])
