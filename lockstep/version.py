"""Model versions and release ids: the two numbers that everything else carries."""

from __future__ import annotations

import re
from dataclasses import dataclass

from lockstep.errors import ReleaseError

_VERSION = re.compile(r"v?([1-9][0-9]{0,17})")
_RELEASE = re.compile(r"v?([1-9][0-9]{0,17})\.([1-9][0-9]{0,17})")


class ModelVersion(int):
    """The number of one training run of both towers, written `v7`.

    An int so that it can be stored and compared as one; its own class so that a bare number is never
    taken for a version by accident.

    Raises:
        ValueError: the number is not positive.
    """

    def __new__(cls, value: int) -> ModelVersion:
        if isinstance(value, bool) or int(value) != value or value < 1:
            raise ValueError(f"a model version is a positive integer, found {value!r}")
        return super().__new__(cls, value)

    @classmethod
    def parse(cls, text: str) -> ModelVersion:
        """Read `v7` or `7`."""
        match = _VERSION.fullmatch(text)
        if match is None:
            raise ValueError(f"a model version is written like v7, found {text!r}")
        return cls(int(match[1]))

    def __str__(self) -> str:
        return f"v{int(self)}"

    def __repr__(self) -> str:
        return f"ModelVersion({int(self)})"


@dataclass(frozen=True, order=True)
class ReleaseId:
    """One snapshot of one model version, written `v7.3`; ordered by version, then snapshot."""

    model_version: ModelVersion
    snapshot: int

    def __post_init__(self) -> None:
        if self.snapshot < 1:
            raise ValueError(f"a snapshot is a positive integer, found {self.snapshot}")

    @classmethod
    def parse(cls, text: str) -> ReleaseId:
        """Read `v7.3` or `7.3`."""
        match = _RELEASE.fullmatch(text)
        if match is None:
            raise ReleaseError(f"a release is written like v7.3, found {text!r}: see `lockstep releases`")
        return cls(ModelVersion(int(match[1])), int(match[2]))

    def __str__(self) -> str:
        return f"{self.model_version}.{self.snapshot}"
