"""What an adapter says, whatever the order in which its files say it: a digest of its weights and configuration in canonical form."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..digests import digest_of_json, file_digest
from ..strict_json import read_object
from .allowlist import ADAPTER_CONFIG, ADAPTER_WEIGHTS, is_tokenizer
from .safetensors import Header, read_header
from .values import read_values

# lists of PEFT's configuration that are sets: https://huggingface.co/docs/peft/package_reference/lora#peft.LoraConfig
SETS = ("target_modules", "exclude_modules", "modules_to_save", "layers_to_transform", "target_parameters")


def content_digest(folder: Path, header: Header | None = None, digests: Mapping[str, str] | None = None) -> str:
    """`sha256:<hex>` of tensors by name, of the configuration, and of a tokenizer if there is one.

    The order of tensors in the file, of keys, and of lists that are sets (PEFT shuffles `target_modules`) does not matter, nor do cards,
    licenses and logs. `header` and `digests` of the tensors are read from the weights unless they are known. Raises InvalidArtifactError.
    """
    if header is None or digests is None:
        header = read_header(folder / ADAPTER_WEIGHTS)
        digests = read_values(header, scan=False, digests=True).digests
    config = read_object(folder / ADAPTER_CONFIG)
    tokenizer = {
        str(path.relative_to(folder).as_posix()): file_digest(path)
        for path in _files(folder)
        if is_tokenizer(path.relative_to(folder).as_posix())
    }
    return digest_of_json({"config": _canonical(config), "tensors": _tensors(header, digests), "tokenizer": tokenizer})


def _files(folder: Path) -> Iterable[Path]:
    return (path for path in folder.rglob("*") if path.is_file())


def _canonical(config: Mapping[str, Any]) -> dict[str, Any]:
    """Without what is not set; 16.0 is 16."""
    return {
        key: sorted({*map(str, value)}) if key in SETS and isinstance(value, list) else _number(value)
        for key, value in config.items()
        if value is not None
    }


def _number(value: Any) -> Any:
    match value:
        case float() if value.is_integer():
            return int(value)
        case dict():
            return {key: _number(each) for key, each in value.items()}
        case list():
            return [_number(each) for each in value]
        case _:
            return value


def _tensors(header: Header, digests: Mapping[str, str]) -> dict[str, list[Any]]:
    """By name: type, shape, and the SHA-256 of the bytes."""
    return {tensor.name: [tensor.dtype, list(tensor.shape), digests[tensor.name]] for tensor in header.tensors.values()}
