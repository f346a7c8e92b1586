"""The streaming merge: every target weight W' = round(W + Σ w·s·B A), everything else copied byte for byte.

One block of rows is in memory at a time per thread, so memory is bounded by the adapters and the blocks, not by the
model. Deltas are formed and added in float32 and rounded once to the output dtype. Shard layout, file names and tensor
order of the base are kept.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import struct
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ..registry.headers import Header, TensorInfo, read_header
from ..registry.inspect import AdapterFacts, BaseFacts
from ..registry.lora import LoraModule
from .errors import MergeError
from .methods import METHODS, Factors
from .recipes import DType

TORCH_DTYPES: dict[str, torch.dtype] = {
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
}
FILE_DTYPES: dict[DType, str] = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
BLOCK_BYTES = 4 << 20
INDEX = "model.safetensors.index.json"
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".gguf", ".onnx")
# The base's card describes the base; the result gets its own.
NOT_CARRIED = ("README.md", "recipe.json", "provenance.json")


@dataclass(frozen=True)
class Part:
    """One adapter of a mix: where it lies, what it holds, and its weight."""

    folder: Path
    facts: AdapterFacts
    weight: float


@dataclass(frozen=True)
class TensorReport:
    """What became of one target weight. Norms are Frobenius norms; `lost` is |W' - (W + Δ)| / |Δ|, the share of the
    delta that rounding to the output dtype swallowed; `changed` is the share of weights that differ from the base."""

    name: str
    adapters: int
    rank: int
    delta_norm: float
    lost: float
    changed: float


@dataclass(frozen=True)
class MergeReport:
    """What a merge did, per target weight, and which files of the base were carried or left out."""

    tensors: tuple[TensorReport, ...]
    copied_tensors: int
    carried: tuple[str, ...]
    left_out: tuple[str, ...]

    def summary(self) -> dict:
        """The figures that a person reads first; medians over the target weights."""
        lost = sorted(t.lost for t in self.tensors)
        changed = sorted(t.changed for t in self.tensors)
        return {
            "merged_tensors": len(self.tensors),
            "copied_tensors": self.copied_tensors,
            "median_lost_to_rounding": round(lost[len(lost) // 2], 4) if lost else 0.0,
            "worst_lost_to_rounding": round(lost[-1], 4) if lost else 0.0,
            "median_changed": round(changed[len(changed) // 2], 4) if changed else 0.0,
            "left_out": list(self.left_out),
        }


def merge(
    base_folder: Path,
    base: BaseFacts,
    parts: Sequence[Part],
    out: Path,
    *,
    method: str = "linear",
    dtype: DType | None = None,
    device: str = "cpu",
    threads: int | None = None,
    progress: Callable[[int], None] = lambda n: None,
) -> MergeReport:
    """Write the merged checkpoint into the empty folder `out`; `progress` is told the bytes read, as they are read.

    `out` is left half-written when something fails: give a staging folder. Raises MergeError, RecipeError.
    """
    plans = _plan(base, parts, method)
    reports: list[TensorReport] = []
    copied = 0
    threads = threads or min(8, os.cpu_count() or 1)
    with _one_torch_thread_each():
        for file in sorted({tensor.file for tensor in base.tensors.values()}):
            source = read_header(base_folder / file)
            # The pool is left before the shard is closed: a thread still writing would write into whatever file is
            # given the closed one's number next.
            with _ShardCopy(source, out / file, dtype) as shard, ThreadPoolExecutor(threads) as pool:
                try:
                    jobs = []
                    for tensor in source.tensors.values():
                        if tensor.name in plans:
                            jobs.append(pool.submit(_merge_tensor, shard, tensor, plans[tensor.name], device, progress))
                        else:
                            copied += 1
                            jobs.append(pool.submit(_copy_tensor, shard, tensor, progress))
                    reports += [report for job in jobs if (report := job.result()) is not None]
                except BaseException:
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise
    carried, left_out = _carry_other_files(base_folder, base, out, dtype)
    _verify(base, out, dtype)
    return MergeReport(tuple(sorted(reports, key=lambda r: r.name)), copied, carried, left_out)


@dataclass(frozen=True)
class _Delta:
    """The combined delta of one weight: `factors` gives [rows, R] and [R, columns] in the weight's own layout."""

    factors: Callable[[], tuple[Tensor, Tensor]]
    adapters: int


def _plan(base: BaseFacts, parts: Sequence[Part], method: str) -> dict[str, _Delta]:
    """Which weights get which delta. Every adapter tensor is in exactly one of them: inspection refuses all others."""
    if not parts:
        raise MergeError("a merge needs at least one adapter")
    for part in parts:
        if not math.isfinite(part.weight):
            raise MergeError(f"the weight of {part.folder} is {part.weight}, not a finite number")
    uses: dict[str, list[tuple[Part, LoraModule]]] = {}
    for part in parts:
        for module in part.facts.modules:
            uses.setdefault(module.weight, []).append((part, module))
    for name in uses:
        stored = base.tensors[name].info.dtype
        if stored not in TORCH_DTYPES:
            raise MergeError(f"base tensor {name} is stored as {stored}; only {', '.join(TORCH_DTYPES)} can be merged")
    return {name: _delta(used, method) for name, used in uses.items()}


def _delta(used: list[tuple[Part, LoraModule]], method: str) -> _Delta:
    if len({module.transposed for _, module in used}) > 1:
        said = ", ".join(f"{part.folder.name}: {module.transposed}" for part, module in used)
        raise MergeError(f"the adapters disagree about fan_in_fan_out of {used[0][1].weight} ({said})")

    def factors() -> tuple[Tensor, Tensor]:
        b, a = METHODS[method]([load_factors(p.folder, m) for p, m in used], [p.weight for p, _ in used])
        return (a.T.contiguous(), b.T.contiguous()) if used[0][1].transposed else (b, a)

    return _Delta(factors, adapters=len(used))


def load_factors(folder: Path, module: LoraModule) -> Factors:
    """Read one module's A and B as float32."""
    header = read_header(folder / "adapter_model.safetensors")
    with header.path.open("rb") as file:
        a, b = (_read(file.fileno(), header, info) for info in (module.a, module.b))
    return Factors(a.float(), b.float(), module.scale)


def _read(fd: int, header: Header, info: TensorInfo, start: int = 0, end: int | None = None) -> Tensor:
    """Bytes [start, end) of a tensor as a flat tensor of its own dtype, or the whole tensor in its shape."""
    stop = info.end - info.start if end is None else end
    flat = torch.frombuffer(_pread(fd, stop - start, header.data_start + info.start + start), dtype=_dtype(info))
    return flat.reshape(info.shape) if end is None else flat


def _dtype(info: TensorInfo) -> torch.dtype:
    return torch.float64 if info.dtype == "F64" else TORCH_DTYPES[info.dtype]


def _pread(fd: int, count: int, offset: int) -> bytearray:
    buffer = bytearray(count)
    view = memoryview(buffer)
    while view:
        got = os.preadv(fd, [view], offset)
        if got == 0:
            raise MergeError("a weight file became shorter while it was read")
        view, offset = view[got:], offset + got
    return buffer


def _pwrite(fd: int, data: memoryview, offset: int) -> None:
    while data:
        wrote = os.pwrite(fd, data, offset)
        data, offset = data[wrote:], offset + wrote


class _ShardCopy:
    """One shard being written beside its source: same tensors in the same order, float dtypes converted if asked."""

    def __init__(self, source: Header, target: Path, dtype: DType | None) -> None:
        self.source = source
        self.target = target
        self.tensors: dict[str, TensorInfo] = {}
        end = 0
        for info in sorted(source.tensors.values(), key=lambda t: t.start):
            kind = FILE_DTYPES[dtype] if dtype and info.dtype in TORCH_DTYPES else info.dtype
            elements = math.prod(info.shape)
            size = elements * TORCH_DTYPES[kind].itemsize if kind != info.dtype else info.end - info.start
            self.tensors[info.name] = replace(info, dtype=kind, start=end, end=end + size)
            end += size
        self._size = end

    def __enter__(self) -> _ShardCopy:
        head = json.dumps(
            {"__metadata__": {"format": "pt"}}  # a single key: several would be written in random order by safetensors
            | {
                name: {"dtype": t.dtype, "shape": list(t.shape), "data_offsets": [t.start, t.end]}
                for name, t in self.tensors.items()
            },
            separators=(",", ":"),
        ).encode()
        head += b" " * (-len(head) % 8)
        self.data_start = 8 + len(head)
        self.in_fd = os.open(self.source.path, os.O_RDONLY)
        self.out_fd = os.open(self.target, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        _pwrite(self.out_fd, memoryview(struct.pack("<Q", len(head)) + head), 0)
        os.ftruncate(self.out_fd, self.data_start + self._size)
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            os.fsync(self.out_fd)
        os.close(self.in_fd)
        os.close(self.out_fd)

    def position(self, name: str) -> int:
        return self.data_start + self.tensors[name].start


def _copy_tensor(shard: _ShardCopy, info: TensorInfo, progress: Callable[[int], None]) -> None:
    """Carry over a tensor that no adapter touches: byte for byte, or converted when another dtype was asked for."""
    target = shard.tensors[info.name]
    position = shard.position(info.name)
    for start, end in _blocks(info.end - info.start, BLOCK_BYTES):
        if target.dtype == info.dtype:
            data = _pread(shard.in_fd, end - start, shard.source.data_start + info.start + start)
            _pwrite(shard.out_fd, memoryview(data), position + start)
        else:
            block = _read(shard.in_fd, shard.source, info, start, end).to(_dtype(target))
            _refuse_overflow(block, info.name, target.dtype)
            _pwrite(shard.out_fd, _bytes(block), position + start * target.nbytes // info.nbytes)
        progress(end - start)


def _merge_tensor(
    shard: _ShardCopy, info: TensorInfo, delta: _Delta, device: str, progress: Callable[[int], None]
) -> TensorReport:
    """W + Δ in float32, block of rows by block of rows, rounded once; see DESIGN's arithmetic."""
    target = shard.tensors[info.name]
    position = shard.position(info.name)
    left, right = (t.to(device) for t in delta.factors())
    columns = info.shape[1]
    row_bytes = columns * _dtype(info).itemsize
    delta_squares = lost_squares = 0.0
    changed = 0
    for start, end in _blocks(info.end - info.start, max(1, BLOCK_BYTES // row_bytes) * row_bytes):
        old = _read(shard.in_fd, shard.source, info, start, end).to(device).reshape(-1, columns).float()
        change = left[start // row_bytes : end // row_bytes] @ right
        new = (old + change).to(_dtype(target))
        _refuse_overflow(new, info.name, target.dtype)
        rounded = new.float()
        delta_squares += float(change.square().sum(dtype=torch.float64))
        # In this order also a change below float32's own resolution is seen to be lost.
        lost_squares += float((rounded - old - change).square().sum(dtype=torch.float64))
        changed += int((rounded != old).sum())
        _pwrite(shard.out_fd, _bytes(new), position + start * target.nbytes // info.nbytes)
        progress(end - start)
    return TensorReport(
        name=info.name,
        adapters=delta.adapters,
        rank=right.shape[0],
        delta_norm=math.sqrt(delta_squares),
        lost=math.sqrt(lost_squares / delta_squares) if delta_squares else 0.0,
        changed=changed / math.prod(info.shape),
    )


def _blocks(size: int, step: int) -> Iterable[tuple[int, int]]:
    return ((start, min(start + step, size)) for start in range(0, size, step))


def _bytes(tensor: Tensor) -> memoryview:
    flat = tensor.detach().cpu().contiguous().view(torch.uint8).reshape(-1)
    return memoryview(flat.numpy())  # pyright: ignore[reportArgumentType]  numpy arrays are buffers


def _refuse_overflow(block: Tensor, name: str, dtype: str) -> None:
    if not bool(torch.isfinite(block).all()):
        raise MergeError(
            f"{name} does not stay finite in {dtype}", hint="check the base and the weights, or choose a wider dtype"
        )


@contextmanager
def _one_torch_thread_each():
    """Threads work on different tensors; letting each GEMM spawn threads of its own would only make them fight."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _carry_other_files(
    base_folder: Path, base: BaseFacts, out: Path, dtype: DType | None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Copy tokenizer, chat template, generation config and licence verbatim; name what is left out."""
    carried, left_out = [], []
    weights = {tensor.file for tensor in base.tensors.values()}
    # Beside a model.safetensors an index is not looked at, and may speak of files that are gone.
    not_carried = (*NOT_CARRIED, INDEX) if "model.safetensors" in weights else NOT_CARRIED
    for path in sorted(base_folder.iterdir()):
        name = path.name
        if name in weights:
            continue
        if path.is_dir() or name.startswith(".") or name in not_carried or name.endswith(WEIGHT_SUFFIXES):
            left_out.append(name)
            continue
        if name in (INDEX, "config.json"):
            _write_json_with_dtype(path, out / name, dtype)
        else:
            shutil.copyfile(path, out / name)
        carried.append(name)
    return tuple(carried), tuple(left_out)


def _write_json_with_dtype(source: Path, target: Path, dtype: DType | None) -> None:
    """config.json and the index are verbatim unless the dtype changes, which both of them state."""
    if dtype is None:
        shutil.copyfile(source, target)
        return
    content = json.loads(source.read_text(encoding="utf-8"))
    if target.name == INDEX:
        headers = [read_header(target.parent / name) for name in sorted(set(content["weight_map"].values()))]
        content.setdefault("metadata", {})["total_size"] = sum(t.nbytes for h in headers for t in h.tensors.values())
    else:
        key = "torch_dtype" if "torch_dtype" in content else "dtype"
        content[key] = dtype
    target.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _verify(base: BaseFacts, out: Path, dtype: DType | None) -> None:
    """Read back what was written: every tensor of the base is there, in its file, with its shape and dtype."""
    for file in {tensor.file for tensor in base.tensors.values()}:
        written = read_header(out / file).tensors
        for name, tensor in base.tensors.items():
            if tensor.file != file:
                continue
            info = tensor.info
            kind = FILE_DTYPES[dtype] if dtype and info.dtype in TORCH_DTYPES else info.dtype
            if name not in written or (written[name].shape, written[name].dtype) != (info.shape, kind):
                raise MergeError(f"the written file {file} does not hold {name} as {kind} {list(info.shape)}")
