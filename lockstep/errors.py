"""Every error that a user of Lockstep can cause.

    LockstepError
    ├── ConfigError              a configuration file or section
    │   └── CombinationError     keys that are right, and do not go together
    ├── SchemaError              the feature schema
    ├── StorageError             a path or bucket
    ├── DataError                input data
    │   └── TooManyBadRowsError  more dead letters than the configured share
    ├── TrainingError            training cannot go on (NaN loss, no examples)
    ├── ArtifactError            an artifact's folder
    │   ├── IncompleteArtifactError
    │   ├── WrongKindError
    │   ├── VersionMismatchError
    │   ├── InputMismatchError
    │   ├── EmbeddingError       embeddings that must not be served
    │   └── CorruptArtifactError
    ├── ReleaseError             the registry
    │   └── PublishConflictError
    ├── GateError                validate_release refused a release
    ├── SubmissionError          an engine did not take the pipeline
    ├── KVError                  the key-value store
    └── RequestError             a retrieval request

Constructors take facts and write the sentence: what was found, what was expected, what to do next.
"""

from __future__ import annotations


class LockstepError(Exception):
    """The root of every error that Lockstep raises on purpose."""


class ConfigError(LockstepError):
    """A configuration file or section is wrong."""


class CombinationError(ConfigError):
    """Keys of the configuration of which each is right, and which do not go together."""


class SchemaError(LockstepError):
    """The feature schema contradicts itself or the data."""


class StorageError(LockstepError):
    """A path or bucket cannot be used as asked."""


class DataError(LockstepError):
    """Input data is missing or unusable as a whole."""


class TooManyBadRowsError(DataError):
    """More rows were dead-lettered than the configuration tolerates."""

    def __init__(self, bad: int, total: int, max_share: float, dead_letters: object, reasons: dict[str, int]) -> None:
        worst = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items(), key=lambda r: -r[1])[:5])
        super().__init__(
            f"{bad} of {total} rows are bad ({bad / max(total, 1):.2%}; {worst}), and [data] bad_rows_max_share "
            f"allows {max_share:.2%}: mend the source or raise the share; every bad row is in {dead_letters}"
        )
        self.reasons = reasons


class TrainingError(LockstepError):
    """Training cannot go on."""


class ArtifactError(LockstepError):
    """An artifact cannot be trusted."""


class IncompleteArtifactError(ArtifactError):
    """A folder has no tag, so it is no artifact: its writer has not finished, or never will."""

    def __init__(self, path: object, what: str = "it has no tag.json") -> None:
        super().__init__(f"{path} is no finished artifact: {what}; rerun the step that writes it")


class WrongKindError(ArtifactError):
    """An artifact of one kind stands where another is expected."""

    def __init__(self, path: object, found: str, expected: str) -> None:
        super().__init__(f"{path} holds {found}, expected {expected}: pass the output of the step that writes it")


class VersionMismatchError(ArtifactError):
    """Two things of different model versions were about to meet."""

    def __init__(self, left: object, left_version: object, right: object, right_version: object, remedy: str) -> None:
        super().__init__(f"{left} is of {left_version}, but {right} is of {right_version}: {remedy}")
        self.left_version = left_version
        self.right_version = right_version


class InputMismatchError(ArtifactError):
    """Two inputs of one step were not made together."""

    def __init__(self, what: str, left: object, left_value: object, right: object, right_value: object) -> None:
        super().__init__(
            f"the {what} of {left} is {left_value}, but of {right} it is {right_value}: "
            "pass the outputs of one run, or rerun generate_examples and what follows it"
        )


class EmbeddingError(ArtifactError):
    """A tower made embeddings that must not be served: not finite, not of unit length, or two of one id."""

    def __init__(self, side: str, version: object, problem: str, examples: list[object], remedy: str) -> None:
        shown = f" (such as {', '.join(repr(example) for example in examples[:5])})" if examples else ""
        super().__init__(f"the {side} embeddings of {version} are refused: {problem}{shown}; {remedy}")


class CorruptArtifactError(ArtifactError):
    """The bytes on disk are not the bytes that the tag was written for."""

    def __init__(self, path: object, found: str, expected: str, remedy: str | None = None) -> None:
        super().__init__(
            f"{path} is corrupt: found {found}, expected {expected}; "
            + (remedy or "rerun the step that writes it, or restore the folder from a backup")
        )


class ReleaseError(LockstepError):
    """The registry does not hold, or does not allow, what was asked."""


class PublishConflictError(ReleaseError):
    """Somebody else moved the live pointer first."""


class GateError(LockstepError):
    """A release failed the gate and was not deployed."""

    def __init__(self, release: object, failures: list[str], report: object) -> None:
        super().__init__(
            f"release {release} is refused by the gate: {'; '.join(failures)}; the live release is unchanged. "
            f"See {report}; the limits are in [gate]"
        )
        self.failures = failures


class SubmissionError(LockstepError):
    """An engine could not be reached, or did not take the compiled pipeline."""

    def __init__(self, engine: str, error: Exception) -> None:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        super().__init__(f"{engine} did not take the pipeline: {reason}; check the address and your permissions")


class KVError(LockstepError):
    """The key-value store cannot answer or holds something impossible."""


class RequestError(LockstepError):
    """A retrieval request is malformed."""
