"""Hundreds of damaged files and folders, in `make soak` thousands: what is no adapter is refused by our own error, in little
memory.

Sound files are damaged at random, in their structure as often as in their bytes, so that most get past the first check.
What is accepted all the same has to hold what the safetensors library finds in it, and nothing may be left over.
"""

from __future__ import annotations

import json
import math
import os
import struct
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reccocktail.registry.artifacts.facts import AdapterFacts, BaseFacts
from reccocktail.registry.artifacts.inspect import inspect_adapter, inspect_base
from reccocktail.registry.artifacts.safetensors import BITS, read_header
from reccocktail.registry.errors import InvalidArtifactError
from safetensors import deserialize, safe_open

Json = Any
Entries = list[list[Any]]  # [name, entry] of a header; a list, since a damaged one may have a name twice

SOAK = os.environ.get("RECCOCKTAIL_SOAK") == "1"  # `make soak`
EXAMPLES = 6_000 if SOAK else 300
SLOWEST = timedelta(seconds=10)  # of one case, on a machine that does other work
# bytes that a case may take whatever its size, since the buffer for a configuration has 10 MiB, and for each byte of its
# own, since parsed JSON may be 25 times as large as its text
MEMORY, PER_BYTE = 16 << 20, 100
LONGEST_MESSAGE = 5_000


@contextmanager
def bounded(size: int) -> Iterator[None]:
    """Fails if more memory is taken within than `size` bytes of input justify."""
    tracemalloc.start()
    try:
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak <= MEMORY + PER_BYTE * size


def fuzz(examples: int) -> Callable[[Any], Any]:
    health = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]
    return settings(max_examples=examples, deadline=SLOWEST, suppress_health_check=health, database=None)


def check_message(error: InvalidArtifactError, place: Path) -> None:
    """It says where, can be printed, and does not repeat a hostile file at length."""
    message = str(error)
    assert str(place) in message
    assert len(message.encode()) < LONGEST_MESSAGE


# --- what a hostile file says ---------------------------------------------------------------------------------------

# Literals that `json.dumps` does not write; each stands in the document as a text of its own until it is put in.
LITERALS = {
    f"literal {number}": text
    for number, text in enumerate(
        (
            "1e999", "-1e999", "9" * 5_000, "-" + "9" * 4_000, "1" * 300 + ".5", "01", "-0", "1E400", "0x10", "NaN", "-Infinity",
            '"\\ud800"', '"\\u0000"', '"' + "x" * 20_000 + '"', '{"a":1,"a":2}', "[" * 100_000, "[" * 900 + "]" * 900,
            '{"a":' * 50_000 + "1", "", "'a'", "//", "null", "true", '"\x01"', '"\ufeff"',
        )
    )
}  # fmt: skip
NUMBERS = [
    0,
    -1,
    1,
    2,
    3,
    4,
    6,
    8,
    255,
    2**31 - 1,
    2**31,
    2**32,
    2**53,
    2**63 - 1,
    2**63,
    2**64,
    2**200,
    0.5,
    -0.0,
    1e308,
    8.0,
]
TEXTS = [
    "", ".", "..", "../../etc/passwd", "/etc/passwd", "a/b", "a\\b", "C:\\x", "~", "$HOME", "%s%n", "{0}", "a\0b", "a\nb",
    "\u202egnp", "\u200b", "é", "e\u0301", "😀", "weight", "a" * 1_001, ".".join("a" * 300), "." * 900, "__metadata__",
    "model.embed_tokens", "embed_tokens", "lm_head", "q_proj", "model.layers.0.self_attn.q_proj", "mlp.experts.gate_up_proj",
    "all", "lora_only", "none", "pissa", "LORA", "F32", "BF16", "true", "1",
]  # fmt: skip
PATTERNS = [
    "q_proj", ".*", ".*q_proj", "(a+)+$", "(a|a)*b", "(.*)*", "(((((((((((a)))))))))))", "a{1,99}", "a{99}{99}", "[a-z]+_proj",
    "[", "(", ")", "*", "\\", "(?i)q", "(?<=a)b", "(?P<x>a)(?P=x)", "\\1", "^$", "|", "x*" * 200, ".*" * 249, "(?:a?){20}a{20}",
    r"model\.layers\.[0-1]\.self_attn\.(q|v)_proj", "[^.]*\\.self_attn\\.q_proj", "\\d+", "[\\d-z]", "é", "\0",
]  # fmt: skip

scalars = st.one_of(
    st.sampled_from(NUMBERS),
    st.sampled_from(TEXTS),
    st.sampled_from(sorted(LITERALS)),
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
)
names = st.sampled_from(TEXTS) | st.text(max_size=12)
patterns = st.sampled_from(PATTERNS) | st.text(alphabet="aq_.*+?()[]{}|\\^$-0,", max_size=10)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(names, inner, max_size=3)
        | st.dictionaries(patterns, inner, max_size=2)
    ),
    max_leaves=4,
)
places = st.floats(0, 1, exclude_max=True)  # a share of whatever length there is


def picked(items: list[Any], place: float) -> int:
    return int(place * len(items))


def written(document: Json) -> bytes:
    text = json.dumps(document)
    for name, literal in LITERALS.items():
        text = text.replace(f'"{name}"', literal)
    return text.encode("utf-8", "surrogatepass")


def object_of(entries: Entries) -> bytes:
    return b"{" + b",".join(written(name) + b":" + written(entry) for name, entry in entries) + b"}"


# --- damage ---------------------------------------------------------------------------------------------------------

Damage = tuple[str, float, float, Any]

to_entries = st.one_of(
    st.tuples(st.just("field"), places, places, values),
    st.tuples(st.just("shape"), places, places, st.lists(st.integers(0, 12) | st.sampled_from(NUMBERS), max_size=4)),
    st.tuples(st.just("offsets"), places, places, st.integers(-64, 64) | st.sampled_from(NUMBERS)),
    st.tuples(st.just("dtype"), places, places, st.sampled_from(sorted(BITS))),
    st.tuples(st.just("extra field"), places, places, values),
    st.tuples(st.just("entry"), places, places, values),
    st.tuples(st.just("name"), places, places, names),
    st.tuples(st.just("twice"), places, places, st.none()),
    st.tuples(st.just("drop"), places, places, st.none()),
    st.tuples(st.just("metadata"), places, places, values),
)
to_bytes = st.one_of(
    st.tuples(st.just("put"), places, places, st.binary(min_size=1, max_size=6)),
    st.tuples(st.just("over"), places, places, st.binary(min_size=1, max_size=3)),
    st.tuples(st.just("cut"), places, places, st.none()),
    st.tuples(st.just("again"), places, places, st.none()),
    st.tuples(st.just("end"), places, places, st.sampled_from([b" ", b"\n\t ", b"\0", b"{}", b"x"])),
)
lengths = st.integers(-9, 9) | st.sampled_from(
    [2**20, 49_999_000, 50_000_001, 100_000_000, 2**31, 2**32, 2**63, 2**64 - 1]
)


def damaged_entries(entries: Entries, damage: Damage) -> None:
    kind, first, second, value = damage
    if kind == "metadata":
        entries.append(["__metadata__", value])
        return
    if not entries:
        return
    at = picked(entries, first)
    name, entry = entries[at]
    if kind == "entry":
        entries[at] = [name, value]
    elif kind == "name":
        entries[at] = [value, entry]
    elif kind == "twice":
        entries.append([name, entries[picked(entries, second)][1]])
    elif kind == "drop":
        del entries[at]
    elif isinstance(entry, dict):
        entry = dict(entry)
        if kind == "extra field":
            entry[str(value)[:50]] = value
        elif kind == "offsets":
            side = picked([0, 1], second)
            offsets = entry.get("data_offsets")
            if isinstance(offsets, list) and len(offsets) == 2 and isinstance(offsets[side], int):
                entry["data_offsets"] = [o + value if i == side else o for i, o in enumerate(offsets)]
        else:
            entry[kind if kind != "field" else picked_field(entry, second)] = value
        entries[at] = [name, entry]


def picked_field(entry: dict[str, Any], place: float) -> str:
    return sorted(entry)[picked(list(entry), place)] if entry else "dtype"


def damaged_bytes(text: bytes, damage: Damage) -> bytes:
    kind, first, second, value = damage
    start, end = sorted((int(first * len(text)), int(second * len(text))))
    if kind == "put":
        return text[:start] + value + text[start:]
    if kind == "over":
        return text[:start] + value + text[start + len(value) :]
    if kind == "cut":
        return text[:start] + text[min(end, start + 8) :]
    if kind == "again":
        return text[:end] + text[start:]
    return text + value


@st.composite
def sound_entries(draw: st.DrawFn) -> tuple[Entries, int]:
    """A few small tensors one after the other, and how many bytes they take."""
    entries: Entries = []
    end = 0
    for number in range(draw(st.integers(0, 4))):
        dtype = draw(st.sampled_from(sorted(BITS)))
        shape = draw(st.lists(st.integers(0, 4), max_size=3))
        bits = math.prod(shape) * BITS[dtype]
        if bits % 8:
            shape, bits = [8, *shape], bits * 8
        entries.append([f"tensor.{number}", {"dtype": dtype, "shape": shape, "data_offsets": [end, end + bits // 8]}])
        end += bits // 8
    return entries, end


def packed(text: bytes, data: bytes, *, length: int = 0) -> bytes:
    """A file; `length` is added to the one that the header has, or taken for it where that is far from it."""
    said = len(text) + length if abs(length) < 10 else length
    return struct.pack("<Q", max(said, 0)) + text + data


damages = st.tuples(
    st.lists(to_entries, max_size=2),
    st.one_of(st.just([]), st.just([]), st.lists(to_bytes, max_size=2)),
    st.one_of(st.just(0), st.just(0), st.just(0), lengths),
    st.one_of(st.just(0), st.just(0), st.just(0), st.integers(-9, 9)),
)
Damages = tuple[list[Damage], list[Damage], int, int]


def file_of(entries: Entries, size: int, damage: Damages, data: bytes | None = None) -> bytes:
    to_entries_, to_bytes_, length, more = damage
    entries = list(entries)
    for each in to_entries_:
        damaged_entries(entries, each)
    text = object_of(entries)
    for each in to_bytes_:
        text = damaged_bytes(text, each)
    data = bytes(size) if data is None else data
    return packed(text, data + bytes(more) if more >= 0 else data[:more], length=length)


# --- headers --------------------------------------------------------------------------------------------------------


def test_a_damaged_header_is_refused_by_our_error_or_read_as_the_library_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "fuzz.safetensors"
    outcomes: Counter[str] = Counter()

    @fuzz(EXAMPLES)
    @given(sound_entries(), damages)
    def case(sound: tuple[Entries, int], damage: Damages) -> None:
        content = file_of(*sound, damage)
        path.write_bytes(content)
        try:
            with bounded(len(content)):
                header = read_header(path)
        except InvalidArtifactError as error:
            check_message(error, path)
            assert any(damage), "a sound file was refused"
            outcomes["refused"] += 1
            return
        outcomes["accepted"] += 1
        start = header.data_start
        assert {
            name: (info.dtype, info.shape, content[start + info.start : start + info.end])
            for name, info in header.tensors.items()
        } == {
            name: (about["dtype"], tuple(about["shape"]), bytes(about["data"])) for name, about in deserialize(content)
        }

    case()
    print(dict(outcomes))
    assert min(outcomes["refused"], outcomes["accepted"]) > EXAMPLES // 20


def test_a_file_that_claims_terabytes_costs_no_more_than_its_header(tmp_path: Path) -> None:
    side = 1 << 20
    entry = {"dtype": "F32", "shape": [side, side], "data_offsets": [0, 4 * side * side]}
    path = tmp_path / "sparse.safetensors"
    path.write_bytes(content := packed(written({"a": entry}), b""))
    with bounded(len(content)), pytest.raises(InvalidArtifactError, match="truncated"):
        read_header(path)
    try:
        os.truncate(path, len(content) + 4 * side * side)
    except OSError:
        pytest.skip("the file system has no files of 4 TiB")
    with bounded(len(content)):
        assert read_header(path).nbytes == 4 * side * side


# --- adapters -------------------------------------------------------------------------------------------------------

LAYER = "model.layers.0"
PREFIX = "base_model.model."
BASE = {
    "model.embed_tokens.weight": (10, 8),
    f"{LAYER}.self_attn.q_proj.weight": (6, 8),
    f"{LAYER}.self_attn.q_proj.bias": (6,),
    f"{LAYER}.self_attn.v_proj.weight": (6, 8),
    f"{LAYER}.mlp.experts.gate_up_proj": (2, 10, 8),
    f"{LAYER}.mlp.experts.down_proj": (2, 8, 5),
    "lm_head.weight": (10, 8),
}
Q = {f"{LAYER}.self_attn.q_proj.lora_A.weight": (2, 8), f"{LAYER}.self_attn.q_proj.lora_B.weight": (6, 2)}
V = {f"{LAYER}.self_attn.v_proj.lora_A.weight": (3, 8), f"{LAYER}.self_attn.v_proj.lora_B.weight": (6, 3)}
SEEDS: dict[str, tuple[dict[str, Json], dict[str, tuple[int, ...]]]] = {
    "plain": ({}, Q),
    "patterns": ({"rank_pattern": {r".*\.v_proj": 3}, "alpha_pattern": {"v_proj": 6}, "use_rslora": True}, Q | V),
    "dora": ({"use_dora": True}, Q | {f"{LAYER}.self_attn.q_proj.lora_magnitude_vector": (6,)}),
    "biases": (
        {"lora_bias": True, "bias": "none"},
        Q | {f"{LAYER}.self_attn.q_proj.lora_B.bias": (6,)},
    ),
    "trained biases": ({"bias": "all"}, Q | {f"{LAYER}.self_attn.q_proj.base_layer.bias": (6,)}),
    "head": ({"modules_to_save": ["lm_head"]}, Q | {"lm_head.weight": (10, 8)}),
    "resized": (
        {"modules_to_save": ["lm_head", "embed_tokens"]},
        Q | {"lm_head.weight": (12, 8), "model.embed_tokens.weight": (12, 8)},
    ),
    "embedding": (
        {},
        Q | {"model.embed_tokens.lora_embedding_A": (2, 10), "model.embed_tokens.lora_embedding_B": (8, 2)},
    ),
    "tokens": (
        {"trainable_token_indices": {"embed_tokens": [1, 7, 3]}},
        Q | {"model.embed_tokens.token_adapter.trainable_tokens_delta": (3, 8)},
    ),
    "experts": (
        {"target_modules": ["q_proj"], "target_parameters": ["mlp.experts.gate_up_proj"]},
        Q | {f"{LAYER}.mlp.experts.lora_A.weight": (4, 8), f"{LAYER}.mlp.experts.lora_B.weight": (10, 4)},
    ),
}
FIELDS = [
    "r", "lora_alpha", "use_rslora", "use_dora", "lora_bias", "bias", "fan_in_fan_out", "rank_pattern", "alpha_pattern",
    "base_model_name_or_path", "peft_type", "init_lora_weights", "modules_to_save", "trainable_token_indices",
    "target_parameters", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "layer_replication",
    "alora_invocation_tokens", "loftq_config", "eva_config", "task_type", "auto_mapping", "ensure_weight_tying", "unknown",
]  # fmt: skip
whole = st.integers(-1, 12) | st.integers(1, 4) | st.sampled_from(NUMBERS)
to_config = st.one_of(
    st.tuples(st.sampled_from(FIELDS), values),
    st.tuples(st.sampled_from(["rank_pattern", "alpha_pattern"]), st.dictionaries(patterns, whole, max_size=3)),
    st.tuples(st.sampled_from(["modules_to_save", "target_parameters"]), st.lists(names, max_size=3)),
    st.tuples(
        st.just("trainable_token_indices"),
        st.lists(whole, max_size=4) | st.dictionaries(names, st.lists(whole, max_size=4), max_size=2),
    ),
    st.tuples(st.just("r"), whole),
)
SUFFIXES = [
    "lora_A.weight", "lora_B.weight", "lora_B.bias", "lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector", "weight",
    "bias", "base_layer.weight", "base_layer.lora_A.weight", "base_layer.base_layer.lora_B.weight", "modules_to_save.weight",
    "modules_to_save.default.weight", "original_module.weight", "token_adapter.trainable_tokens_delta",
    "token_adapter.base_layer.weight", "lora_A.default.weight", "", ".",
]  # fmt: skip
MODULES = [
    "model.embed_tokens", f"{LAYER}.self_attn.q_proj", f"{LAYER}.self_attn.v_proj", f"{LAYER}.mlp.experts", "lm_head",
    "model", "model.layers.99999999999999999999.self_attn.q_proj", "..", "../../x", "a" * 900, "base_layer", "",
]  # fmt: skip
tensor_names = st.builds(
    lambda module, suffix: f"{PREFIX}{module}.{suffix}", *map(st.sampled_from, (MODULES, SUFFIXES))
)
shapes = st.lists(st.integers(0, 12), max_size=4)
to_tensors = st.one_of(
    st.tuples(st.just("rename"), places, tensor_names | names),
    st.tuples(st.just("add"), places, st.tuples(tensor_names, shapes)),
    st.tuples(st.just("shape"), places, shapes),
    st.tuples(st.just("turn"), places, st.none()),
    st.tuples(st.just("drop"), places, st.none()),
)
dtypes = st.sampled_from([*["F32"] * 8, "F64", "F16", "BF16", "I8", "F8_E4M3", "F4"])
data_bytes = st.sampled_from([*[b"\0"] * 8, b"\xff", b"\x7f"])


def damaged_tensors(tensors: dict[str, Any], damage: tuple[str, float, Any]) -> None:
    """Damage after which the file is still sound: what is wrong is only what it means."""
    kind, place, value = damage
    if kind == "add":
        tensors[value[0]] = tuple(value[1])
    elif tensors:
        name = list(tensors)[picked(list(tensors), place)]
        shape = tensors.pop(name)
        if kind == "rename":
            tensors[value] = shape
        elif kind != "drop":
            tensors[name] = tuple(value) if kind == "shape" else shape[::-1]


def entries_of(tensors: dict[str, Any], dtype: str) -> tuple[Entries, int]:
    entries: Entries = []
    end = 0
    for name, shape in tensors.items():
        size = -(-math.prod(shape) * BITS[dtype] // 8)
        entries.append([name, {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + size]}])
        end += size
    return entries, end


def write_adapter(folder: Path, config: bytes, weights: bytes) -> int:
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_bytes(config)
    (folder / "adapter_model.safetensors").write_bytes(weights)
    return len(config) + len(weights)


def config_of(seed: str) -> dict[str, Json]:
    about = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "base_model_name_or_path": None, "task_type": "CAUSAL_LM"}
    return about | SEEDS[seed][0]


def seed_tensors(seed: str) -> dict[str, Any]:
    return {PREFIX + name: shape for name, shape in SEEDS[seed][1].items()}


def check_nothing_is_left_over(facts: AdapterFacts, path: Path) -> None:
    """Every tensor that the library finds in the file is used in one place, and has the shape that it has there."""
    used = [
        *(info for m in facts.modules for info in (m.a, m.b, m.magnitude, m.bias) if info is not None),
        *(saved.info for saved in facts.saved),
        *(rows.info for rows in facts.tokens),
        *facts.copies,
    ]
    with safe_open(path, framework="np") as file:
        shapes_ = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    assert len(used) == len(shapes_)
    assert {info.name: info.shape for info in used} == shapes_


def check_it_fits(facts: AdapterFacts) -> None:
    """What is said of the base is so: factors multiply to the weight's shape, saved tensors have it, rows are in it."""
    for module in facts.modules:
        rank = module.rank
        assert module.experts * rank == module.a.shape[0] == module.b.shape[1]
        assert math.isfinite(module.scale)
        assert module.places
        out_in = (module.b.shape[0], module.a.shape[1])
        for place in module.places:
            shape = BASE[place.tensor]
            assert shape[-2:] in (out_in, out_in[::-1])
            assert place.expert is None or (place.index is not None and 0 <= place.index < shape[0])
    for rows in facts.tokens:
        tokens, width = BASE[rows.place.tensor]
        assert rows.info.shape == (len(rows.indices), width)
        assert all(0 <= index < tokens for index in rows.indices)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseFacts:
    folder = tmp_path_factory.mktemp("base")
    (folder / "config.json").write_text(
        json.dumps({"architectures": ["Qwen2MoeForCausalLM"], "tie_word_embeddings": False, "vocab_size": 10})
    )
    (folder / "model.safetensors").write_bytes(file_of(*entries_of(dict(BASE), "F32"), ([], [], 0, 0)))
    return inspect_base(folder)


@pytest.mark.parametrize("seed", SEEDS)
def test_what_is_damaged_here_was_sound(tmp_path: Path, base: BaseFacts, seed: str) -> None:
    weights = file_of(*entries_of(seed_tensors(seed), "F32"), ([], [], 0, 0))
    write_adapter(tmp_path, written(config_of(seed)), weights)
    facts = inspect_adapter(tmp_path, base)
    check_nothing_is_left_over(facts, tmp_path / "adapter_model.safetensors")
    check_it_fits(facts)


def test_a_damaged_adapter_is_refused_by_our_error_or_used_to_its_last_tensor(tmp_path: Path, base: BaseFacts) -> None:
    folder = tmp_path / "fuzz"
    outcomes: Counter[str] = Counter()
    none: Damages = ([], [], 0, 0)

    @fuzz(EXAMPLES)
    @given(
        seed=st.sampled_from(sorted(SEEDS)),
        to_config_=st.lists(to_config, max_size=2),
        to_text=st.one_of(*[st.just([])] * 7, st.lists(to_bytes, max_size=2)),
        to_tensors_=st.one_of(st.just([]), st.lists(to_tensors, max_size=2)),
        to_file=st.one_of(*[st.just(none)] * 4, damages),
        dtype=dtypes,
        byte=data_bytes,
        with_base=st.booleans(),
    )
    def case(
        seed: str,
        to_config_: list[tuple[str, Json]],
        to_text: list[Damage],
        to_tensors_: list[tuple[str, float, Any]],
        to_file: Damages,
        dtype: str,
        byte: bytes,
        with_base: bool,
    ) -> None:
        config = config_of(seed) | dict(to_config_)
        text = written(config)
        for damage in to_text:
            text = damaged_bytes(text, damage)
        tensors = seed_tensors(seed)
        for each in to_tensors_:
            damaged_tensors(tensors, each)
        entries, size = entries_of(tensors, dtype)
        total = write_adapter(folder, text, file_of(entries, size, to_file, byte * size))
        try:
            with bounded(total):
                facts = inspect_adapter(folder, base if with_base else None)
        except InvalidArtifactError as error:
            check_message(error, folder)
            outcomes["refused"] += 1
            return
        outcomes["accepted"] += 1
        check_nothing_is_left_over(facts, folder / "adapter_model.safetensors")
        if with_base:
            check_it_fits(facts)

    case()
    print(dict(outcomes))
    assert min(outcomes["refused"], outcomes["accepted"]) > EXAMPLES // 50
