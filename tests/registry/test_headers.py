from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from reccocktail.registry.artifacts.safetensors import TensorInfo, read_header
from reccocktail.registry.errors import InvalidArtifactError
from safetensors.numpy import save_file

SOUND: dict[str, Any] = {
    "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    "b": {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]},
}


def raw(header: Any, data: bytes = b"\0" * 32) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def changed(name: str, **fields: Any) -> dict[str, Any]:
    return SOUND | {name: SOUND[name] | fields}


def test_a_header_tells_names_types_shapes_and_places(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(raw({"__metadata__": {"format": "pt"}} | SOUND))
    header = read_header(path)
    assert header.tensors == {
        "a": TensorInfo("a", "F32", (2, 3), 0, 24),
        "b": TensorInfo("b", "BF16", (4,), 24, 32),
    }
    assert header.metadata == {"format": "pt"}
    assert (header.nbytes, header.size, header.data_start) == (32, path.stat().st_size, path.stat().st_size - 32)


def test_what_the_library_writes_is_read_to_the_byte(tmp_path: Path) -> None:
    arrays = {
        "x": np.arange(6, dtype="float32").reshape(2, 3),
        "none": np.zeros((0, 4), "float16"),
        "y": np.ones(3, "int8"),
    }
    save_file(arrays, tmp_path / "x.safetensors")
    header = read_header(tmp_path / "x.safetensors")
    data = (tmp_path / "x.safetensors").read_bytes()[header.data_start :]
    assert {name: data[info.start : info.end] for name, info in header.tensors.items()} == {
        name: array.tobytes() for name, array in arrays.items()
    }


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "too few"),
        (b"\1\2\3", "too few"),
        (struct.pack("<Q", 100) + b"{}", "beyond the file"),
        (struct.pack("<Q", 200_000_000) + b"{}", "over the limit"),
        (raw(SOUND, b"\0" * 31), "truncated"),
        (raw(SOUND, b"\0" * 33), "bytes that no tensor owns"),
        (b"PK\3\4" + b"\0" * 3 + b"\1", "is over the limit of 50000000: this is a pickle"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
        (raw(b"\xff\xfe"), "its header begins with b'\\xff'"),
        (raw(b""), "its header begins with b''"),
        (raw(b" {}"), "its header begins with b' '"),
        (raw(b"[]"), "its header begins with b'['"),
        (raw(b'{"\xff": 1}'), "not sound JSON"),
        (raw(b"{"), "not sound JSON"),
        (raw(b'{"a":' * 100_000), "not sound JSON"),
        (raw(rb'{"\ud800": 1}'), "lone surrogate"),
        (raw({"a\tb": SOUND["a"]}), "control or invisible characters"),
        (raw({"a" * 1_001: SOUND["a"]}), "name of 1001 characters"),
        (raw(b'{"a":1,"a":2}'), "'a' appears twice"),
        (raw({"__metadata__": {"a": 1}} | SOUND), "__metadata__"),
        (raw(SOUND | {"a": 3}), "'a' must have dtype"),
        (raw(changed("a", dtype="F33")), "'F33'"),
        (raw(changed("a", dtype=["F32"])), "unknown dtype"),
        (raw(changed("a", shape=[-2, -3])), "impossible shape"),
        (raw(changed("a", shape=[True, 6])), "impossible shape"),
        (raw(changed("a", shape=[3, 2**63 - 1, 0], data_offsets=[0, 0])), "impossible shape"),
        (raw(changed("a", shape=[2, 4])), "does not take the 24 bytes"),
        (raw(changed("a", data_offsets=[24, 0])), "impossible data_offsets"),
        (raw(changed("a", data_offsets=[0, 24.0])), "impossible data_offsets"),
        (raw(changed("b", data_offsets=[20, 28])), "overlaps"),
        (raw(changed("b", data_offsets=[25, 33])), "hole"),
    ],
)  # fmt: skip
def test_a_broken_file_is_refused_with_its_name_and_the_reason(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "broken.safetensors"
    path.write_bytes(content)
    with pytest.raises(InvalidArtifactError, match=r"broken\.safetensors") as caught:
        read_header(path)
    assert reason in str(caught.value)


def test_a_missing_file_is_refused_by_our_error(tmp_path: Path) -> None:
    with pytest.raises(InvalidArtifactError, match="No such file"):
        read_header(tmp_path / "none.safetensors")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F16", "BF16", "U8", "F4", "X"]) | json_values,
        "shape": st.lists(st.integers(-1, 4), max_size=3) | json_values,
        "data_offsets": st.lists(st.integers(-1, 64), min_size=2, max_size=2) | json_values,
    }
)


@hypothesis_settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.one_of(
        st.binary(max_size=64),
        st.builds(raw, json_values, st.binary(max_size=16)),
        st.builds(raw, st.dictionaries(st.text(max_size=3), entries, max_size=3), st.binary(max_size=64)),
    )
)
def test_whatever_the_bytes_only_our_error_comes_out(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "fuzz.safetensors"
    path.write_bytes(content)
    try:
        header = read_header(path)
    except InvalidArtifactError as error:
        str(error).encode()  # and it can be printed
    else:
        assert sum(info.nbytes for info in header.tensors.values()) == header.nbytes


@hypothesis_settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(st.text(max_size=3), entries, max_size=3),
    st.binary(max_size=64),
    st.sampled_from([b"", b" ", b"\n\t"]),
)
def test_what_is_accepted_the_library_reads_the_same(
    tmp_path: Path, header: dict[str, Any], data: bytes, padding: bytes
) -> None:
    from safetensors import deserialize

    ours = tmp_path / "fuzz.safetensors"
    ours.write_bytes(content := raw(json.dumps(header).encode() + padding, data))
    try:
        read = read_header(ours)
    except InvalidArtifactError:
        return
    theirs = {
        name: (about["dtype"], tuple(about["shape"]), bytes(about["data"])) for name, about in deserialize(content)
    }
    assert theirs == {
        name: (info.dtype, info.shape, content[read.data_start + info.start : read.data_start + info.end])
        for name, info in read.tensors.items()
    }


def test_hand_written_fixtures_are_sound(tmp_path: Path, write_safetensors: Callable[..., Path]) -> None:
    from safetensors.numpy import load_file

    arrays = {"x": np.arange(6, dtype="float32").reshape(2, 3)}
    np.testing.assert_array_equal(load_file(write_safetensors(tmp_path / "x.safetensors", arrays))["x"], arrays["x"])
