"""Line breaks within quotes: what a CSV parser would swallow is taken out line by line, and nothing else is."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest

from dataflow.sources import files, lines
from dataflow.sources.lines import SoundLines
from lockstep.config import DataSection
from lockstep.errors import DataError
from tests.unit.sources_harness import Read, read

DAY = "2024-05-06"


def sound(text: bytes, *, multiline: bool = False, delimiter: str = ",") -> tuple[bytes, list[bytes]]:
    refused: list[bytes] = []
    reader = SoundLines(io.BytesIO(text), "f.csv", delimiter, multiline=multiline, refuse=refused.append)
    return reader.read(), refused


def read_csv(tmp_path: Path, text: str | bytes, **mapping: Any) -> Read:
    (tmp_path / "events.csv").write_bytes(text.encode() if isinstance(text, str) else text)
    events = {"file": "events.csv", "query": "user", "candidate": "thing", "timestamp": "at", **mapping}
    values = {"source": "tables", "path": str(tmp_path), "tables": {"events": events}}
    return read(DataSection.model_validate(values), tmp_path / "out")


def users(made: Read) -> list[str]:
    return [event["query_id"] for event in made.events]


# Each line is sound: nothing is taken out, whatever the quotes in it.
SOUND = [
    b"a,b,c",
    b'"a","b","c"',
    b'"a ""quoted"" word",b,""',
    b'"""a""","",""""""',
    b'12" vinyl,7" single,b',
    b'12" vinyl,b,c',
    b'a,b"c"d,e',
    b'"a"b"c,d,e',
    b'"a" ,b, "c',
    b',,""',
    b'"x,y",z,"""',
]
# Each line ends within quotes.
OPEN = [b'a,"b,c', b'"a', b'a,b,"', b'"a"",b,c', b'12" vinyl,"b,c', b'"a","b","c""', b'"a"b",c"d,"e']


@pytest.mark.parametrize("break_", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("multiline", [False, True])
def test_sound_lines_pass_as_they_are(break_: bytes, multiline: bool) -> None:
    text = b"x,y,z" + break_ + break_.join(line for line in SOUND if line != b'"x,y",z,"""') + break_
    assert sound(text, multiline=multiline) == (text, [])


@pytest.mark.parametrize("line", OPEN)
@pytest.mark.parametrize("break_", [b"\n", b"\r\n", b"\r"])
def test_a_line_that_ends_within_quotes_is_taken_out_alone(line: bytes, break_: bytes) -> None:
    head, tail = b"x,y,z" + break_ + b"1,2,3" + break_, b"4,5,6" + break_ + b'"7","8","9"'
    assert sound(head + line + break_ + tail) == (head + tail, [line])
    # At the end of the file, with and without a line break.
    assert sound(head + line) == (head, [line])
    assert sound(head + line + break_, multiline=True) == (head, [line])


def test_the_parser_agrees_with_what_is_sound(tmp_path: Path) -> None:
    rows = [line for line in SOUND if line != b'"x,y",z,"""']
    made = read_csv(tmp_path, b"user,thing,at\n" + b"".join(line + b"\n" for line in [*rows, *OPEN]))
    assert made.counts.events_in == len(rows) + len(OPEN)
    assert made.reasons["unclosed quote"] == len(OPEN)


def test_a_quote_closed_by_accident_far_below_costs_two_lines_and_none_between(tmp_path: Path) -> None:
    between = [f"u{n},t,{DAY}" for n in range(5_000)]
    text = "\n".join(["user,thing,at", f'first,"t,{DAY}', *between, f'last,t",{DAY}', f"after,t,{DAY}", ""])
    made = read_csv(tmp_path, text)
    assert users(made) == [*(f"u{n}" for n in range(5_000)), "after"]
    assert made.reasons == {"unclosed quote": 2}
    assert made.counts.events_in == 5_003
    assert [line["row"] for line in made.dead] == [{"text": f'first,"t,{DAY}'}, {"text": f'last,t",{DAY}'}]


def test_a_stray_quote_is_suspect_only_after_a_line_that_was_taken_out(tmp_path: Path) -> None:
    made = read_csv(tmp_path, f'user,thing,at\n12",t,{DAY}\n"u,t,{DAY}\n7",t,{DAY}\n3",t,{DAY}\n')
    assert users(made) == ['12"', '3"']
    assert made.reasons == {"unclosed quote": 2}


def test_without_multiline_a_value_of_two_lines_is_two_dead_letters_and_a_hint(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = f'user,thing,at\n"a\nb",t,{DAY}\nc,t,{DAY}\n'
    made = read_csv(tmp_path, text)
    assert users(made) == ["c"]
    assert made.reasons == {"unclosed quote": 2}
    assert "set multiline = true in its section of [data.tables]" in caplog.text
    made = read_csv(tmp_path, text, multiline=True)
    assert users(made) == ["a\nb", "c"]
    assert (made.dead, made.counts.events_in) == ([], 2)


@pytest.mark.parametrize("break_", ["\n", "\r\n", "\r"])
def test_a_multiline_value_holds_any_line_break_quote_and_separator(tmp_path: Path, break_: str) -> None:
    value = f'one{break_}{break_}two, ""three""{break_}'
    text = break_.join(['user,thing,at,"a', 'b"', f'"{value}",t,{DAY},"{break_}"', f"u,t,{DAY},", ""])
    made = read_csv(tmp_path, text, multiline=True)
    assert users(made) == [value.replace('""', '"'), "u"]
    assert made.dead == []


def test_a_record_of_more_lines_than_allowed_costs_its_first_and_last_line_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "MAX_LINES", 5)
    allowed = '"1\n2\n3\n4\n5"'
    rows = [f"{allowed},t,{DAY}", f'"open,t,{DAY}', *(f"u{n},t,{DAY}" for n in range(9)), f'v,t",{DAY}']
    made = read_csv(tmp_path, "user,thing,at\n" + "\n".join(rows), multiline=True)
    assert users(made) == ["1\n2\n3\n4\n5", *(f"u{n}" for n in range(9))]
    assert made.reasons == {"unclosed quote": 2}
    assert made.dead[0]["row"] == {"text": f'"open,t,{DAY}'}


@pytest.mark.parametrize("multiline", [False, True])
def test_where_the_file_is_cut_for_reading_changes_nothing(monkeypatch: pytest.MonkeyPatch, multiline: bool) -> None:
    parts = [b"h,i,j", b'"a\r\nb",c,d', b'12",x,y', 'é,"ü\r\rö",z'.encode(), b'"open,1,2', b"q,r,s", b'"""",t,u', b""]
    text = b"\r\n".join(parts * 3)
    expected = sound(text, multiline=multiline)
    assert expected[1]
    for size in (1, 2, 3, 7, 50):
        monkeypatch.setattr(lines, "_READ_BYTES", size)
        assert sound(text, multiline=multiline) == expected, size


def test_where_the_parsers_blocks_end_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = ["a\r\nb", "x\r\n", "é\r\n\r\n,"]
    text = "user,thing,at\r\n" + "".join(f'"{value}",t,{DAY}\r\n' for value in values)
    for size in range(25, 60):
        monkeypatch.setattr(files, "BLOCK_BYTES", size)
        assert users(read_csv(tmp_path, text, multiline=True)) == values, size


def test_tabs_separate_where_they_are_told(tmp_path: Path) -> None:
    text = b'user\tthing\tat\n1,"2\t"3\t4"\tx\n"a\t5\t6\n7\t8\t9\n'
    assert sound(text, delimiter="\t") == (text.replace(b'"a\t5\t6\n', b""), [b'"a\t5\t6'])


@pytest.mark.parametrize("header", [b'user,thing,"at\n', b'"user,thing,at\n'])
def test_a_header_that_ends_within_quotes_is_an_error(tmp_path: Path, header: bytes) -> None:
    with pytest.raises(DataError, match=r"events.csv: the first line, the names of the columns, ends within quotes"):
        read_csv(tmp_path, header + b"u,t,2024-05-06\n" * 3)


def test_a_quoted_header_after_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    made = read_csv(tmp_path, b'\xef\xbb\xbf"user","thing","at"\nu,t,2024-05-06\n')
    assert (users(made), made.dead) == (["u"], [])


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be"])
def test_utf_16_is_refused_as_a_whole(tmp_path: Path, encoding: str) -> None:
    mark = b"\xfe\xff" if encoding == "utf-16-be" else b""
    with pytest.raises(DataError, match=r"events.csv is UTF-16: convert it to UTF-8"):
        read_csv(tmp_path, mark + f"user,thing,at\nu,t,{DAY}\n".encode(encoding))


def test_text_of_another_encoding_costs_the_rows_that_hold_it(tmp_path: Path) -> None:
    made = read_csv(tmp_path, f'user,thing,at\ncafé,t,{DAY}\n"x",t,{DAY}\n"caf\xe9",t,{DAY}\n'.encode("latin-1"))
    assert (users(made), made.reasons) == (["x"], {"invalid UTF-8": 2})


@pytest.mark.parametrize("break_", ["\n", "\r\n", "\r"])
def test_every_line_break_ends_a_row(tmp_path: Path, break_: str) -> None:
    made = read_csv(
        tmp_path, break_.join(["user,thing,at", f"é,t,{DAY}", "", f"日本,t,{DAY}", f'"b,t,{DAY}', f"c,t,{DAY}"])
    )
    assert users(made) == ["é", "日本", "c"]
    assert (made.counts.events_in, made.reasons) == (4, {"unclosed quote": 1})


def test_a_line_longer_than_a_block_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "MAX_BYTES", 3_000_000)
    with pytest.raises(DataError, match=r"events.csv has a line longer than 2 MiB"):
        read_csv(tmp_path, b"user,thing,at\n" + b"u" * 6_000_000 + b",t,2024-05-06\n")


def test_refused_lines_are_found_in_every_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "BLOCK_BYTES", 600)
    monkeypatch.setattr(lines, "_READ_BYTES", 100)
    rows = [f'"u{n},t,{DAY}' if n % 10 == 0 else f'"u{n}",t,{DAY}' for n in range(300)]
    made = read_csv(tmp_path, "user,thing,at\n" + "\n".join(rows))
    assert users(made) == [f"u{n}" for n in range(300) if n % 10]
    assert (made.reasons, made.counts.events_in) == ({"unclosed quote": 30}, 300)
