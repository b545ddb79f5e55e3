"""The sections of the model: [model], [train] and [evaluate]."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, PositiveInt, field_validator, model_validator

from lockstep.section import Section

Pooling = Literal["mean", "recency", "attention"]
"""How the elements of a sequence become one vector."""


class TowerSection(Section):
    """[model.query] and [model.candidate]: the layers above the feature embeddings."""

    hidden: tuple[PositiveInt, ...] = (128,)
    """Units of each hidden layer; the embedding layer comes after them."""
    cross_layers: int = Field(0, ge=0, le=8)
    """Cross layers (DCN-v2), which multiply features with one another."""
    cross_rank: int | None = Field(None, ge=1)
    """Rank of the cross layers' weights, for wide inputs; None for full."""
    cross: Literal["stacked", "parallel"] = "stacked"
    """Cross layers below the hidden ones, or beside them."""
    pooling: dict[str, Pooling] = {}
    """Sequence feature -> its pooling, where it is not the model's."""


class ModelSection(Section):
    """[model]: the architecture of both towers."""

    embedding_dim: int = Field(64, ge=2)
    feature_dim: int = Field(32, ge=1)
    """Embedding size of a feature that does not name its own `dim`."""
    combine: Literal["concat", "sum"] = "concat"
    """How the features of a tower meet; a sum projects those of another width to `feature_dim` first. A sum whose
    `feature_dim` is `embedding_dim`, with no hidden or cross layer above it, is the embedding."""
    pooling: Pooling = "mean"
    """How sequences are pooled."""
    query: TowerSection = TowerSection()
    candidate: TowerSection = TowerSection()
    residual: bool = False
    """Hidden layers add to their input, projected where the widths differ."""
    layer_norm: bool = False
    """Normalise each hidden layer's sum before its activation."""
    temperature: float = Field(0.1, gt=0)
    """Divides the cosine of the two vectors in the softmax."""
    learn_temperature: bool = False
    """Start from `temperature` and train it."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Share of a layer's inputs that training zeroes."""


class TrainSection(Section):
    """[train]: the training loop."""

    batch_size: int = Field(1024, ge=2)
    epochs: int = Field(5, ge=1)
    optimizer: Literal["adagrad", "adam"] = "adam"
    learning_rate: float = Field(0.001, gt=0)
    decay: Literal["none", "cosine"] = "cosine"
    """How the learning rate falls to zero over the whole training."""
    half_life_days: float | None = Field(None, gt=0)
    """An example this much older than the newest is in half as many epochs; None has all in each."""
    negatives: Literal["auto", "in_batch", "mixed", "full"] = "auto"
    """What a query's candidate is told apart from: the others of the batch; those and `uniform_negatives` drawn
    evenly from the catalogue; or the whole catalogue. `auto`: all of it up to `full_softmax_max`, else `mixed`."""
    full_softmax_max: int = Field(20_000, ge=1)
    uniform_negatives: int = Field(1024, ge=1, le=100_000)
    hard_negatives: int | None = Field(None, ge=1)
    """Keep only so many negatives a query, those that score highest."""
    logq: Literal["data", "streaming", "none"] = "data"
    """The probability with which a candidate is drawn into a batch, that the logits are corrected by: counted by the
    data step, or estimated while training (Yi et al. 2019)."""
    sample_history: float = Field(0.0, ge=0, le=1)
    """Share of the examples of which a random part of the history is seen, and not all of it."""
    sample_at_most: int | None = Field(None, ge=1)
    """Such a part has at most so many elements: about as many as the queries that are to come."""
    find_hidden: bool = False
    """What `sample_history` hides of a history is to be found, as the label is, so that an example teaches as much as
    all that its history goes with. Takes the full softmax."""
    unknown_id_share: float = Field(0.0, ge=0, lt=1)
    """Share of candidate ids that training hides, so that the other features carry candidates it has never seen."""
    average_weights: float | None = Field(None, gt=0, lt=1)
    """Decay a step of a moving average of the weights, which is what is exported; None exports the last."""
    early_stopping: int | None = Field(None, ge=1)
    """Stop after so many epochs without a better validation recall, and export the best; None trains them all."""
    validation_k: int = Field(100, ge=1)
    """The k of the recall that early stopping and `lockstep tune` look at."""
    validation_queries: int = Field(2_000, ge=1)
    """At most this many validation queries, the first of the split."""
    warm_start: bool = False
    """Begin with the weights of the live release's towers; new vocabulary entries begin afresh."""
    strategy: Literal["auto", "one_device", "mirrored", "multi_worker"] = "auto"
    """`auto`: several workers where TF_CONFIG names them, all GPUs of this machine where it has several."""
    mixed_precision: bool = False
    """Multiply in float16 (GPU) or bfloat16, keep weights and losses in float32."""
    xla: bool = False
    """Compile the dense parts of the training step with XLA; that takes half a minute first."""
    profile_steps: int = Field(0, ge=0)
    """Record a profile of so many steps for TensorBoard."""
    shuffle_buffer: int = Field(1_000_000, ge=1)
    """Records among which the next one is drawn; about 500 bytes of memory each."""
    checkpoint_every_steps: int = Field(500, ge=1)
    seed: int = Field(1, ge=0, lt=2**31)

    @model_validator(mode="after")
    def _hidden_can_be_found(self) -> TrainSection:
        if self.find_hidden and (self.negatives in ("in_batch", "mixed") or not self.sample_history):
            raise ValueError(
                f"find_hidden takes the full softmax and a sampled history, found negatives = {self.negatives!r} and "
                f"sample_history = {self.sample_history}"
            )
        if self.sample_at_most is not None and not self.sample_history:
            raise ValueError("sample_at_most means nothing without sample_history: set that, or leave it out")
        return self


class EvaluateSection(Section):
    """[evaluate]: exact measures over the full catalogue."""

    ks: tuple[PositiveInt, ...] = Field((10, 20, 100), min_length=1)
    exclude_history: bool = True
    """Leave the query's own past out of the ranking."""
    baselines: tuple[Literal["item_knn", "ease", "als"], ...] = ("item_knn",)
    """Compared with on the same split beside popularity, which always is."""
    baseline_max_candidates: int = Field(20_000, ge=1)
    """Above it, item-kNN and EASE are left out, and the report says so. Matrices of this size squared (1.6 GB each at
    20,000): item-kNN holds 2 at its peak, EASE 2.5, and both together 3.5, which are 5.6 GB."""
    slices: tuple[str, ...] = ()
    """Schema columns to report by, such as `country`, beside the slices that every report has."""
    bootstrap: int = Field(1_000, ge=0)
    """Resamples of the queries for the confidence intervals; 0 leaves them out."""
    threads: int = Field(2, ge=1)
    seed: int = Field(1, ge=0)


class Range(Section):
    """Numbers from `low` to `high`; whole ones where both are whole."""

    low: int | float
    high: int | float
    log: bool = False
    """Try as many between 1 and 10 as between 10 and 100."""

    @model_validator(mode="after")
    def _ordered(self) -> Range:
        if not self.low < self.high or (self.log and self.low <= 0):
            raise ValueError(f"low = {self.low} must be below high = {self.high}, and above 0 where log is set")
        return self


Choices = tuple[bool | int | float | str | tuple[int, ...], ...]


_YARDSTICK = ("train.validation_k", "train.validation_queries", "train.seed", "train.warm_start")


class TuneSection(Section):
    """[tune]: what `lockstep tune` looks for."""

    trials: int = Field(30, ge=1)
    parameters: dict[str, Choices | Range] = {
        "train.learning_rate": Range(low=0.001, high=0.03, log=True),
        "train.half_life_days": ("unset", 30, 60, 120, 365),
        "model.temperature": Range(low=0.05, high=0.3, log=True),
        "model.dropout": (0.0, 0.2, 0.4),
        "model.embedding_dim": (64, 128, 256),
    }
    """Key of [model] or [train] -> a range or a list of choices; "unset" is the key left out."""

    @field_validator("parameters")
    @classmethod
    def _known(cls, parameters: dict[str, Any]) -> dict[str, Any]:
        sections: dict[str, type[Section]] = {"model": ModelSection, "train": TrainSection}
        for name, choices in parameters.items():
            section, _, key = name.partition(".")
            fields = sections[section].model_fields if section in sections else {}
            if key.partition(".")[0] not in fields:
                raise ValueError(f"{name!r} names no key of [model] or [train], such as 'train.learning_rate'")
            if name in _YARDSTICK:
                raise ValueError(f"{name!r} decides how trials are compared, or nothing at all: set it in [train]")
            if isinstance(choices, tuple) and not choices:
                raise ValueError(f"{name!r} has no choices")
        if not parameters:
            raise ValueError("there is nothing to look for")
        return parameters
