"""The configuration: one TOML file, one section a step.

A step receives its own section only, so that a change elsewhere does not invalidate its cache. Unknown keys are
errors that list the valid ones; every default is written here and nowhere else.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from lockstep.errors import CombinationError, ConfigError
from lockstep.model_sections import EvaluateSection, ModelSection, TrainSection, TuneSection
from lockstep.schema import Schema
from lockstep.section import Section, SectionType


def _whole(options: dict[str, Any]) -> dict[str, Any]:
    # Pipeline parameters pass whole numbers inside dicts as floats.
    whole = {name: int(value) for name, value in options.items() if isinstance(value, float) and value.is_integer()}
    return options | whole


class RunSection(Section):
    """[run]: where everything is written."""

    root: str = Field("lockstep-root", min_length=1)
    """The local folder or gs:// prefix; `--root` overrides it."""
    image: str = Field("lockstep-retrieval", min_length=1)
    """The container image of every component, where the pipeline runs in containers."""


class SyntheticSource(Section):
    """[data.synthetic]: the generator's size and shape."""

    playlists: int = Field(4_000, ge=10)
    tracks: int = Field(2_000, ge=10)
    artists: int = Field(200, ge=1)
    genres: int = Field(12, ge=1)
    mean_length: int = Field(20, ge=2)
    seed: int = 1


class EventsTable(Section):
    """[data.tables.events]: the columns of the interactions file that mean something to Lockstep."""

    file: str | None = None
    """Source `tables`: Parquet or CSV, or a glob of them, below [data] path."""
    table: str | None = None
    """Source `bigquery`: `project.dataset.table`, a table or a view."""
    query: str
    candidate: str
    timestamp: str
    timestamp_unit: Literal["auto", "s", "ms", "us", "ns"] = "auto"
    """The unit of an integer timestamp; `auto` for timestamp columns, ISO 8601 text and obvious integers."""
    position: str | None = None
    """Orders events of one moment. Without it they are simultaneous: none is in the history of another."""
    engagement: str | None = None
    """How much the event meant (seconds watched, rating, pieces sold): see [data] min_engagement, engagement_weight."""
    multiline: bool = False
    """CSV: a quoted value may hold line breaks; where it may not, a line that ends within quotes is a dead letter."""


class AttributesTable(Section):
    """[data.tables.candidates] and [data.tables.queries]: one row an entity."""

    file: str | None = None
    """Source `tables`: Parquet or CSV, or a glob of them, below [data] path."""
    table: str | None = None
    """Source `bigquery`: `project.dataset.table`, a table or a view."""
    id: str
    columns: dict[str, str] = {}
    """Column name in the schema -> column name in the file; `{}` takes every column under its own name."""
    types: dict[str, Literal["string", "int64", "double", "bool", "timestamp"]] = {}
    """Type of a column (by its name in the schema), or of its elements; the file's own, and `string` for CSV."""
    separators: dict[str, str] = {}
    """What separates the elements of a column of text that holds lists, such as `genres = "|"`."""
    multiline: bool = False
    """CSV: a quoted value may hold line breaks; where it may not, a line that ends within quotes is a dead letter."""


class TablesSource(Section):
    """[data.tables]: bring your own tables."""

    events: EventsTable
    candidates: AttributesTable | None = None
    queries: AttributesTable | None = None


class BigQuerySection(Section):
    """[data.bigquery]: where the `bigquery` warehouse runs its queries."""

    project: str = ""
    """The project that pays; the credentials' own where it is empty."""
    dataset: str = "lockstep"
    """Where the intermediate tables go; it is made where it is missing."""
    location: str = ""
    """Region of the data set, such as `EU`; needed to make it, and it must be the source tables' region."""
    expiry_hours: int = Field(72, ge=1)
    """Intermediate tables vanish after this time, whatever becomes of the run."""
    max_bytes_billed: int | None = Field(None, ge=1)
    """A query that would read more is refused by BigQuery, before it costs anything."""
    labels: dict[str, str] = {}
    """Labels of every job and table, beside Lockstep's own (run, step)."""


class DataSection(Section):
    """[data]: the source, the split and the examples."""

    source: Literal["synthetic", "mpd", "tables", "bigquery"] = "synthetic"
    path: str = ""
    """The folder of the source's files; `--data` overrides it."""
    synthetic: SyntheticSource = SyntheticSource()
    tables: TablesSource | None = None
    pairing: Literal["next_event", "co_occurrence", "candidate_pairs"] = "next_event"
    """What an example pairs: the past with the next event; the rest of a basket or playlist with each of its
    candidates; or one candidate with another of the same basket (title with title)."""
    window: int = Field(5, ge=1, le=1_000)
    """`candidate_pairs`: candidates at most this many places apart are a pair."""
    min_engagement: float | None = None
    """Events of less engagement, or of none, are no positives: neither labels nor targets nor history."""
    engagement_weight: Literal["none", "linear", "log"] = "none"
    """How an example's weight grows with its engagement; the weights' mean is 1."""
    balance: float = Field(0.0, ge=0, le=1)
    """How much less an example weighs, the more of them its query entity has: by their number to the power of minus
    this. With 1 all entities weigh the same, with 0 all examples do."""
    max_age_days: float | None = Field(None, gt=0)
    """Labels this much older than the validation cut are left out; histories still have them."""
    warehouse: Literal["duckdb", "bigquery"] = "duckdb"
    bigquery: BigQuerySection = BigQuerySection()
    warehouse_memory: str = Field("4GB", pattern=r"^\d+(\.\d+)? ?(KB|MB|GB|TB|KiB|MiB|GiB|TiB)$")
    """What the embedded warehouse may hold in memory; beyond it spills to disk."""
    runner: Literal["DirectRunner", "DataflowRunner", "FlinkRunner", "SparkRunner", "PortableRunner", "PrismRunner"] = (
        "DirectRunner"
    )
    """The Beam runner of the examples step."""
    beam: dict[str, str | int | float | bool | tuple[str, ...]] = {}
    """[data.beam]: Beam's own pipeline options by name, such as `region` or `max_num_workers`."""

    @field_validator("beam")
    @classmethod
    def _whole_numbers(cls, beam: dict[str, Any]) -> dict[str, Any]:
        return _whole(beam)

    bad_rows_max_share: float = Field(0.01, ge=0, le=1)
    validation_from: datetime | None = None
    """Events from this moment on are never trained on; by default the moment that leaves `validation_share`."""
    test_from: datetime | None = None
    """Events from this moment on belong to the test split; by default the moment that leaves `test_share`."""
    validation_share: float = Field(0.05, ge=0, lt=1)
    test_share: float = Field(0.10, gt=0, lt=1)
    holdout_share: float = Field(0.02, ge=0, lt=1)
    """Share of query entities, by hash of their id, that training never sees; they join the validation split."""
    min_history: int = Field(1, ge=0)
    """Fewest past events that an example needs."""
    seed_events: int = Field(5, ge=1)
    """An entity first seen after the cut is evaluated by its first events as query, the rest as targets."""
    max_targets: int = Field(500, ge=1)
    evaluation_queries: int = Field(10_000, ge=1)
    """At most this many queries in each evaluation split, chosen by hash."""
    shard_rows: int = Field(250_000, ge=1)
    """Training records in one file, about; a worker holds one file's records in memory."""
    seed: int = 1
    """Decides the order of the training records."""


class EmbedSection(Section):
    """[embed]: batch embedding of candidates and query entities."""

    batch_size: int | None = Field(None, ge=1)
    """Rows that the tower computes at once; None finds it by trying, up to the memory limit."""
    shard_rows: int = Field(250_000, ge=1)
    """Rows in one output file. A job that died goes on after the last whole file; workers share the files out."""
    dtype: Literal["float32", "float16"] = "float32"
    """Of the vectors on disk; float16 takes half the room, and readers get float32 all the same."""
    runner: Literal[
        "local", "DirectRunner", "DataflowRunner", "FlinkRunner", "SparkRunner", "PortableRunner", "PrismRunner"
    ] = "local"
    """`local` embeds in the step's own process, any other is the Beam runner that embeds file by file."""
    beam: dict[str, str | int | float | bool | tuple[str, ...]] = {}
    """[embed.beam]: Beam's own pipeline options by name, such as `region` or `max_num_workers`."""

    @field_validator("beam")
    @classmethod
    def _whole_numbers(cls, beam: dict[str, Any]) -> dict[str, Any]:
        return _whole(beam)


class IndexSection(Section):
    """[index]: the ANN index."""

    backend: Literal["auto", "scann", "brute_force"] = "auto"
    """`auto` searches up to 20,000 candidates exactly; above, it builds a tree, measures both, and takes the faster."""
    target_recall: float = Field(0.97, ge=0.5, lt=1)
    """The share of the exact neighbours that a search finds on average, with a filter or without."""
    k: int = Field(100, ge=1, le=1_000)
    """The number of results that the index is tuned for; searches for fewer or more are tuned beside it."""
    tuning_queries: int = Field(5_000, ge=10)
    """At most so many query embeddings, drawn from all of them, are searched for in tuning; 2,000 for a million
    candidates of 64 floats, so that their exact neighbours are found in the time of the build."""
    threads: int = Field(2, ge=1)
    """Of the build, and of searches for many queries at once."""


class KVSection(Section):
    """[kv]: the store of query embeddings."""

    backend: Literal["embedded"] = "embedded"
    keep: int = Field(5, ge=1)
    """Model versions kept for each entity."""
    batch_size: int = Field(10_000, ge=1)


class GateSection(Section):
    """[gate]: what a release must reach before it is deployed; it fails closed."""

    k: int = Field(100, ge=1)
    min_recall: float = Field(0.0, ge=0, le=1)
    """Floor of recall@k on the test split."""
    min_recall_vs_popularity: float = Field(1.0, ge=0)
    """Floor of recall@k divided by that of 30-day popularity."""
    min_ann_recall: float = Field(0.95, ge=0, le=1)
    """Floor of the index's recall@k against exact search."""
    min_coverage: float = Field(1.0, ge=0, le=1)
    """Floor of the share of candidates in the index, and of query entities in the KV store."""
    canaries: int = Field(16, ge=1)
    """Rows of each side that are embedded again and compared with the file."""
    ann_queries: int = Field(200, ge=1)
    max_latency_ms: float = Field(200.0, gt=0)
    """Ceiling of the median search time of the index."""


class Config(BaseModel):
    """The whole file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    run: RunSection = RunSection()
    data: DataSection = DataSection()
    schema_: Annotated[Schema, Field(alias="schema")]
    model: ModelSection = ModelSection()
    train: TrainSection = TrainSection()
    tune: TuneSection = TuneSection()
    evaluate: EvaluateSection = EvaluateSection()
    embed: EmbedSection = EmbedSection()
    index: IndexSection = IndexSection()
    kv: KVSection = KVSection()
    gate: GateSection = GateSection()

    @model_validator(mode="after")
    def _slices_are_of_the_schema(self) -> Config:
        # Evaluation comes after training, which is a late moment to hear of a wrong name.
        for name in self.evaluate.slices:
            self.schema_.sliced_by(name)
        return self


def load_config(path: Path, overrides: Mapping[str, Mapping[str, Any]] | None = None) -> Config:
    """Read and check a configuration file.

    Args:
        overrides: section -> key -> value, from the command line; they win over the file.

    Raises:
        ConfigError: the file is missing, is no TOML, or has a wrong section, key or value.
        SchemaError: [schema] contradicts itself.
    """
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"there is no configuration file {path}: the examples are in configs/") from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path} is no readable TOML file: {error}") from error
    for section, values in (overrides or {}).items():
        if isinstance(raw.get(section, {}), dict):  # what is no table is refused below
            raw[section] = {**raw.get(section, {}), **values}
    return _validate(Config, raw, source=f"{path}: ")


def parse_section(section: type[SectionType], values: Mapping[str, Any]) -> SectionType:
    """Check a section that arrives as a pipeline parameter.

    Pipeline parameters pass whole numbers inside dicts as floats; pydantic takes 8.0 where an int belongs
    and refuses 8.5, which is what is wanted.
    """
    return _validate(section, dict(values), place=section.__name__.removesuffix("Section").lower())


def parse_schema(values: Mapping[str, Any]) -> Schema:
    """Check a schema that arrives as a pipeline parameter."""
    return _validate(Schema, dict(values), place="schema")


_Model = TypeVar("_Model", bound=BaseModel)


def _validate(model: type[_Model], raw: dict[str, Any], *, source: str = "", place: str = "") -> _Model:
    """Check a file, or the one section of it that stands at a place."""
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        if first["type"] == "value_error" and isinstance(first.get("input"), Mapping):
            section = ".".join([place] * bool(place) + [str(step) for step in first["loc"]])
            raise CombinationError(f"{source}{f'[{section}]: ' * bool(section)}{first['ctx']['error']}") from error
        raise ConfigError(f"{source}{_sentence(model, raw, first, place)}") from error


def _sentence(model: type[BaseModel], raw: dict[str, Any], error: Any, place: str) -> str:
    # Tagged unions put the tag into the location; only steps that exist in the input are the user's words.
    location = [str(step) for step in error["loc"]]
    *inner, key = location
    parents = [place] * bool(place) + _without_tags(inner, raw)
    where = f"[{'.'.join(parents)}]" if parents else "the file"
    if error["type"] == "extra_forbidden":
        valid = _valid_keys(model, location[:-1])
        near = difflib.get_close_matches(key, valid, 1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        what = "key" if parents else "section"
        return f"{where} has an unknown {what} {key!r}{hint}; valid are {', '.join(valid)}"
    if error["type"] == "missing":
        return f"{where} needs {key!r}"
    if error["type"] == "union_tag_invalid":
        return f"{where} {key}: {error['msg']}"
    found = error.get("input")
    return f"{where} {key} = {found!r}: {error['msg'][0].lower()}{error['msg'][1:]}"


def _without_tags(location: list[str], raw: Any) -> list[str]:
    kept = []
    for step in location:
        if isinstance(raw, Mapping) and step in raw:
            raw = raw[step]
            kept.append(step)
        elif not isinstance(raw, Mapping):
            kept.append(step)
    return kept


def _valid_keys(model: Any, location: list[str]) -> list[str]:
    """The keys that exist where the unknown one stands, found by walking the model's JSON schema."""
    root = model.model_json_schema(by_alias=True)
    node = root
    for step in location:
        node = _resolve(node, root)
        if "discriminator" in node:
            node = _resolve({"$ref": node["discriminator"]["mapping"][step]}, root)
            continue
        if step in node.get("properties", {}):
            node = node["properties"][step]
        elif isinstance(node.get("additionalProperties"), dict):
            node = node["additionalProperties"]
    return sorted(_resolve(node, root).get("properties", {}))


def _resolve(node: dict[str, Any], root: dict[str, Any]) -> dict[str, Any]:
    while True:
        if "$ref" in node:
            node = root["$defs"][node["$ref"].rsplit("/", 1)[1]]
        elif "anyOf" in node:
            node = next((option for option in node["anyOf"] if option.get("type") != "null"), {})
        elif len(node.get("allOf", [])) == 1:
            node = node["allOf"][0]
        else:
            return node
