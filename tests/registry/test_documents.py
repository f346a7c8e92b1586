"""What comes from outside is read as plain values, or refused with our own error, whatever it is."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reccocktail.registry.errors import InvalidArtifactError
from reccocktail.registry.strict_json import parse_mapping, parse_value, parse_written, read_object, regular_bytes
from reccocktail.registry.strict_yaml import parse_yaml
from reccocktail.tasks.documents import read_yaml

texts = st.text(st.characters(codec="utf-8"), max_size=12)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats(allow_nan=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=12,
)
pieces = st.sampled_from(
    ["a: ", "b", "\n", "  ", "- ", "[", "]", "{", "}", ", ", "&x ", "*x", "<<: ", "!!int ", "!t ", "? ", ": ", "|\n", ">-\n", "'",
     '"', "\\ud800", "\\u0000", "\0", "0x", "1:59", "1.0e+999", ".nan", "2026-13-45", "---\n", "%YAML 9.9\n", "#", "\t", "= 1\n", "é", "[a]\n",
     "9" * 5000, "\ufeff", "'''", '"""', "NaN", "-Infinity", "1e999", "\x85", "…"]
)  # fmt: skip
garbage = st.lists(pieces, max_size=14).map("".join) | st.text(max_size=30)
few = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@few
@given(values)
def test_what_the_library_writes_is_read_as_it_was(value: Any) -> None:
    assert parse_yaml(yaml.safe_dump(value).encode()) == value
    assert parse_written(json.dumps(value).encode(), ".json") == value


@few
@given(garbage, st.sampled_from([".yaml", ".toml", ".json"]))
def test_anything_else_is_plain_data_or_a_value_error(text: str, suffix: str) -> None:
    try:
        found = parse_written(text.encode("utf-8", "surrogatepass"), suffix)
    except ValueError:
        return
    json.dumps(found, default=str).encode()
    repr(found).encode()


REFUSED = {
    "an alias": ("a: &x [1]\nb: *x", "alias"),
    "an anchor alone": ("a: &x 1", "anchor"),
    "a merge key": ("a: {<<: {b: 1}}", "merge key"),
    "a key twice": ("method: linear\nmethod: factor", "'method' appears twice"),
    "a key that is a number": ("1: a", "put '1' in quotes"),
    "a key that is true": ("on: a", "put 'on' in quotes"),
    "a key that is a list": ("? [a]\n: b", "a list or a mapping"),
    "a tag": ("a: !!int '3'", "tag"),
    "an object": ("a: !!python/object/apply:os.getcwd []", "tag"),
    "a number of 5,000 digits": ("a: " + "9" * 5000, "100 characters"),
    "a hexadecimal number of 5,000 digits": ("a: 0x" + "f" * 5000, "100 characters"),
    "a time of a thousand parts": ("a: 1" + ":59" * 1000, "100 characters"),
    "a great depth": ("[" * 5000, "deeper than 32"),
    "a great depth of dashes": ("- " * 5000, "deeper than 32"),
    "half of a character": ('a: "\\ud800"', "surrogate"),
    "two documents": ("a: 1\n---\nb: 2", "another document"),
}


@pytest.mark.parametrize(("text", "said"), REFUSED.values(), ids=REFUSED)
def test_yaml_that_grows_runs_or_is_ambiguous_is_refused(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said):
        parse_written(text.encode(), ".yaml")
    (tmp_path / "file.yaml").write_text(text)
    with pytest.raises(ValueError, match=said):
        read_yaml(tmp_path / "file.yaml")


def test_a_place_is_said_by_line_and_column() -> None:
    with pytest.raises(ValueError, match=r"\(line 3, column 4\)"):
        parse_yaml(b"a: 1\nb: 2\nc: *x\n")


@pytest.mark.parametrize(
    ("text", "suffix", "said"),
    [
        ('{"a": 1, "a": 2}', ".json", "appears twice"),
        (f'{{"a": 1{"0" * 400}}}', ".json", "100 digits"),
        ('{"a": ' + "[" * 80 + "]" * 80 + "}", ".json", "deeper than 64"),
        ("[" * 100_000, ".json", "deep"),
        ('{"a": "\\ud800"}', ".json", "surrogate"),
        (f"a = 0x{'f' * 400}", ".toml", "100 digits"),
        ("a" + ".a" * 100_000 + " = 1", ".toml", "dots"),
        ("a = 1\na = 2", ".toml", "overwrite"),
        ("a = " + "[" * 100_000, ".toml", "deep"),
    ],
)
def test_json_and_toml_are_bounded_too(text: str, suffix: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse_written(text.encode(), suffix)


def test_what_other_programs_write_may_have_aliases_and_numbers_for_keys_but_no_merge_keys() -> None:
    assert parse_yaml(b"a: &x [1]\nb: *x\n1: c", foreign=True) == {"a": [1], "b": [1], 1: "c"}
    with pytest.raises(InvalidArtifactError, match="merge key"):
        parse_mapping(b"a: &x {b: 1}\nc: {<<: *x}", Path("MLmodel"), foreign=True)


@pytest.mark.parametrize(
    "text", ["NaN", "-Infinity", "1e999", "[" * 100_000, "1" * 400, '{"a": 1, "a": 2}', "word", ""]
)
def test_an_option_is_one_finite_value(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_value(text)
    assert parse_value("0.5") == 0.5


def test_a_pipe_a_folder_and_a_device_are_no_files_and_are_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "folder.yaml").mkdir()
    for path in (tmp_path / "pipe.yaml", tmp_path / "folder.yaml", Path("/dev/zero"), tmp_path / "a\0b"):
        with pytest.raises((OSError, ValueError)):
            regular_bytes(path)
        with pytest.raises((OSError, ValueError)):
            read_yaml(path)
        with pytest.raises(InvalidArtifactError):
            read_object(path)


def test_a_configuration_may_have_an_infinity_but_no_depth(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"time_step_limit": [0.0, Infinity]}')  # as Mamba's configurations have it
    assert math.isinf(read_object(path)["time_step_limit"][1])
    path.write_text('{"a": ' + '{"a": ' * 500 + "1" + "}" * 501)
    with pytest.raises(InvalidArtifactError, match="deeper"):
        read_object(path)
