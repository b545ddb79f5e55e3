"""The configuration and the schema: what is wrong is said, and what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from lockstep.config import DataSection, IndexSection, load_config, parse_schema, parse_section
from lockstep.errors import ConfigError, LockstepError, SchemaError
from lockstep.model_sections import TrainSection
from lockstep.schema import Schema

BASE = """
[schema.query.history]
type = "id_sequence"
columns = ["history.candidate_id"]
max_length = 7
shares = "track"
[schema.candidate.track]
type = "id"
columns = ["candidate_id"]
"""


def load(tmp_path: Path, text: str) -> object:
    path = tmp_path / "c.toml"
    path.write_text(text)
    return load_config(path)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("x", "is no readable TOML file"),
        ("data = 3\n" + BASE, "the file data = 3: input should be a valid dictionary"),
        (BASE + "[data]\nwarehouse_memory = 'lots'\n", "[data] warehouse_memory = 'lots': string should match"),
        (BASE + "[data]\nrunner = 'Foo'\n", "[data] runner = 'Foo': input should be 'DirectRunner', 'DataflowRunner'"),
        (BASE + "[modl]\n", "has an unknown section 'modl' (did you mean 'model'?); valid are data, embed"),
        (BASE + "[data]\nsorce = 1\n", "[data] has an unknown key 'sorce' (did you mean 'source'?); valid are"),
        (BASE + "mincount = 3\n", "[schema.candidate.track] has an unknown key 'mincount' (did you mean 'min_count'?)"),
        (BASE + "[model.query]\nhiden = [3]\n", "[model.query] has an unknown key 'hiden' (did you mean 'hidden'?)"),
        (BASE + "[data]\nshard_rows = 2.5\n", "[data] shard_rows = 2.5: input should be a valid integer"),
        (BASE + "[data]\nshard_rows = 0\n", "[data] shard_rows = 0: input should be greater than or equal to 1"),
        (BASE + "[data.tables]\n", "[data.tables] needs 'events'"),
        ("[schema.query.x]\ntype = 'text'\n", "[schema] needs 'candidate'"),
        (BASE.replace('"id"', '"idd"'), "Input tag 'idd' found using 'type' does not match any of the expected tags"),
        (BASE.replace('"track"', '"trak"'), "shares = 'trak' names no candidate feature (there are ['track'])"),
        (BASE.replace("track", "Track"), "a feature's name matches"),
        (BASE + "[schema.candidate.b]\ntype = 'numeric'\ncolumns = ['x', 'y']\n", "numeric takes one column"),
        (BASE + "[schema.query.q]\ntype = 'id'\ncolumns = ['history.x']\n", "use a query *_sequence"),
        (BASE + "[schema.query.q]\ntype = 'text'\nshares = 'track'\n", "a text cannot share the vocabulary of 'track'"),
        ("[schema]\nquery = {}\ncandidate = {}\n", "[schema.query] declares no feature"),
        (BASE + "[schema.candidate.b]\ntype = 'id'\ncolumns = ['a; DROP TABLE x']\n", "is no column name"),
        ("[schema]\nrestricts = ['A']\n" + BASE, "[schema] restricts: 'A' is no column name ([a-z][a-z0-9_]{0,62})"),
        ("[schema]\nrestricts = ['a', 'b', 'a']\n" + BASE, "[schema] restricts: 'a' stands there twice"),
        ("[schema]\nnumeric_restricts = ['1']\n" + BASE, "[schema] numeric_restricts: '1' is no column name"),
        ("[schema]\nnumeric_restricts = ['a', 'a']\n" + BASE, "[schema] numeric_restricts: 'a' stands there twice"),
        ("[schema]\ndeny = { 'a b' = 'c' }\n" + BASE, "[schema] deny: 'a b' is no namespace"),
        ("[schema]\ndeny = { a = 'c d' }\n" + BASE, "[schema] deny.a: 'c d' is no column name"),
        ("[schema]\ndeny = ['a']\n" + BASE, "[schema] deny = ['a']: input should be a valid dictionary"),
    ],
)
def test_each_mistake_is_one_sentence_that_helps(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(LockstepError) as caught:
        load(tmp_path, text)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_points_to_the_examples(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no configuration file .*nope\.toml: the examples are in configs/"):
        load_config(tmp_path / "nope.toml")


def test_the_command_line_wins_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text(BASE + "[data]\npath = 'a'\nshard_rows = 3\n")
    config = load_config(path, {"data": {"path": "b"}, "run": {"root": "/r"}})
    assert (config.data.path, config.data.shard_rows, config.run.root) == ("b", 3, "/r")


def test_whole_floats_from_pipeline_parameters_are_ints_again() -> None:
    assert parse_section(IndexSection, {"threads": 4.0, "k": 50.0}).threads == 4
    assert type(parse_section(IndexSection, {"threads": 4.0}).threads) is int
    with pytest.raises(ConfigError, match=r"^\[index\] threads = 4\.5"):
        parse_section(IndexSection, {"threads": 4.5})


def test_a_section_survives_the_way_through_json() -> None:
    section = DataSection.model_validate({"test_from": "2011-10-01", "shard_rows": 3})
    assert parse_section(DataSection, section.to_dict()) == section


def test_whole_numbers_for_beam_survive_pipelines_that_make_them_floats() -> None:
    section = parse_section(DataSection, {"beam": {"max_num_workers": 20.0, "region": "r", "share": 0.5}})
    assert section.beam == {"max_num_workers": 20, "region": "r", "share": 0.5}
    assert isinstance(section.beam["max_num_workers"], int)


def test_the_schemas_digest_changes_with_it_and_only_with_it() -> None:
    raw = {
        "query": {"a": {"type": "text", "columns": ("x", "y")}, "b": {"type": "numeric"}},
        "candidate": {"c": {"type": "id"}},
    }
    schema = parse_schema(raw)
    swapped = {**raw, "query": dict(reversed(raw["query"].items()))}
    assert parse_schema(swapped).digest == schema.digest == Schema.from_json(schema.to_json()).digest
    assert schema.query["b"].columns == ("b",)
    changed = {**raw, "candidate": {"c": {"type": "id", "min_count": 2}}}
    assert parse_schema(changed).digest != schema.digest


def test_a_namespace_may_have_allowed_and_denied_tokens_and_numbers() -> None:
    towers = {"query": {"h": {"type": "id"}}, "candidate": {"c": {"type": "id"}}}
    filters = {"restricts": ["b", "a"], "numeric_restricts": ["b"], "deny": {"z": "x", "b": "y", "c": "b"}}
    schema = parse_schema({**towers, **filters})
    assert schema.namespaces == ("b", "a", "c", "z")
    assert Schema.from_json(schema.to_json()) == parse_schema(schema.to_dict()) == schema
    assert parse_schema(towers).namespaces == ()
    swapped = parse_schema({**towers, **filters, "deny": {"c": "b", "z": "x", "b": "y"}})
    assert (swapped.digest, swapped.namespaces) == (schema.digest, schema.namespaces)
    assert parse_schema({**towers, **filters, "deny": {}}).digest != schema.digest


def test_what_the_schema_derives() -> None:
    schema = parse_schema(
        {
            "query": {
                "h": {"type": "id_sequence", "columns": ("history.candidate_id",), "max_length": 7},
                "t": {"type": "text_sequence", "columns": ("history.title",), "max_length": 3},
                "own": {"type": "numeric_sequence", "max_length": 50},
            },
            "candidate": {"c": {"type": "id"}},
        }
    )
    assert schema.history_columns == ("candidate_id", "title")
    assert schema.max_history == 7


def test_errors_of_the_schema_are_schema_errors(tmp_path: Path) -> None:
    with pytest.raises(SchemaError):
        load(tmp_path, BASE.replace('"track"', '"trak"'))


@pytest.mark.parametrize(
    "train", [{"find_hidden": True}, {"find_hidden": True, "sample_history": 1.0, "negatives": "mixed"}]
)
def test_what_is_hidden_can_only_be_found_by_the_full_softmax(train: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"^\[train\]: find_hidden takes the full softmax"):
        parse_section(TrainSection, train)
    assert parse_section(TrainSection, {"find_hidden": True, "sample_history": 1.0}).find_hidden


@pytest.mark.parametrize(
    ("section", "sentence"),
    [
        ("[train]\nfind_hidden = true", r"\[train\]: find_hidden takes the full softmax"),
        ("[train]\nsample_at_most = 3", r"\[train\]: sample_at_most means nothing without sample_history"),
        ("[train]\nseed = -1", r"\[train\] seed = -1"),
        ("[train]\nseed = 20240101123456", r"\[train\] seed = 20240101123456: input should be less than 2147483648"),
        ("[train]\nuniform_negatives = 1000000", r"uniform_negatives = 1000000: input should be less than or equal"),
        ("[evaluate]\nks = []", r"\[evaluate\] ks = \[\]"),
        ("[evaluate]\nslices = ['a', 'c']", r"^\[evaluate\] slices: 'c' is no feature: take one of \['a', 'b'\]"),
        ("[evaluate]\nks = [10, 0]", r"ks.* = 0"),
        ("[model]\nquery = { hidden = [0] }", r"hidden.* = 0"),
        ('[tune.parameters]\n"train.seed" = [1, 2]', "'train.seed' decides how trials are compared, or nothing at all"),
    ],
)
def test_settings_that_mean_nothing_are_refused_in_a_sentence(section: str, sentence: str, tmp_path: Path) -> None:
    schema = '[schema.query.a]\ntype = "id"\n[schema.candidate.b]\ntype = "id"\n'
    (tmp_path / "c.toml").write_text(schema + section)
    with pytest.raises(ConfigError, match=sentence) as refused:
        load_config(tmp_path / "c.toml")
    assert "{" not in str(refused.value)
