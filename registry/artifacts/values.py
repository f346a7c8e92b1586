"""The bytes of tensors, read once: whether all values are finite, which tensors are zero, and a digest of each."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path

from ..errors import InvalidArtifactError
from .safetensors import Header, TensorInfo

# IEEE values whose exponent bits are all set are NaN or infinite. Such a value of either sign is the greatest there can be
# when bits are compared as integers, signed for the positive ones and unsigned for the negative: {dtype: (bytes, exponent)}
_EXPONENTS = {"F64": (8, 0x7FF << 52), "F32": (4, 0x7F800000), "F16": (2, 0x7C00), "BF16": (2, 0x7F80)}
_BYTES = ("U8",)  # of text, which is never NaN
_PIECE = 1 << 20  # stays in a core's cache


@dataclass
class Values:
    """`zero` are the tensors that are zero throughout, known after a scan; `digests` the hex SHA-256 of each tensor's bytes, by name."""

    zero: set[str] = field(default_factory=set)
    digests: dict[str, str] = field(default_factory=dict)


def read_values(header: Header, path: Path | None = None, *, scan: bool = True, digests: bool = False) -> Values:
    """What the tensors of the file say, or those of a copy of it at `path`; errors name the file that the header is of.

    Raises InvalidArtifactError naming the first that holds NaN or an infinity.
    """
    found = Values()
    buffer = memoryview(bytearray(_PIECE))
    try:
        with FileIO(path or header.path) as file:
            file.seek(header.data_start)
            for tensor in sorted(header.tensors.values(), key=lambda each: (each.start, each.end)):  # without holes
                hasher, looked = hashlib.sha256(), list[tuple[int, bool]]()
                has_floats = tensor.dtype not in _BYTES
                for piece in _pieces(file, tensor, buffer):
                    if scan and has_floats:
                        looked.append(_look(piece, tensor.dtype))
                    if digests:
                        hasher.update(piece)
                if bad := sum(count for count, _ in looked):
                    raise InvalidArtifactError(
                        f"{header.path}: tensor {tensor.name!r} has {bad} of {tensor.elements} values NaN or infinite"
                    )
                if scan and has_floats and all(is_zero for _, is_zero in looked):
                    found.zero.add(tensor.name)
                if digests:
                    found.digests[tensor.name] = hasher.hexdigest()
    except (OSError, EOFError) as error:
        raise InvalidArtifactError(f"{header.path}: cannot be read to its end: {error}") from error
    return found


def _pieces(file: FileIO, tensor: TensorInfo, buffer: memoryview) -> Iterator[memoryview]:
    left = tensor.nbytes
    while left:
        piece = buffer[: min(left, len(buffer))]
        filled = 0
        while filled < len(piece):
            count = file.readinto(piece[filled:])
            if not count:
                raise EOFError(f"it ended within {tensor.name!r}")
            filled += count
        left -= len(piece)
        yield piece


def _look(piece: memoryview, dtype: str) -> tuple[int, bool]:
    """How many values are NaN or infinite, and whether all are zero, of either sign."""
    import numpy as np

    width, exponent = _EXPONENTS[dtype]
    sign = 1 << (8 * width - 1)
    bits = np.frombuffer(piece, f"<u{width}")
    # few tensors are zero, and most show it by their first values
    is_zero = not (bits[:64] & (sign - 1)).any() and not (bits & (sign - 1)).any()
    if bits.max() >= sign | exponent or bits.view(f"<i{width}").max() >= exponent:
        return int(np.count_nonzero((bits & exponent) == exponent)), is_zero
    return 0, is_zero
