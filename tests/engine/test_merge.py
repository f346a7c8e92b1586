"""Merged checkpoints against PEFT in float32, and against float64 algebra rounded once; and what a merge leaves alone."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from reccocktail.engine.errors import MergeError, RecipeError
from reccocktail.engine.merging import stream as merging
from reccocktail.engine.merging.plan import Mix
from reccocktail.registry import inspect_base
from reccocktail.registry.errors import UnsupportedAdapterError
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

FIRST = "model.layers.0.self_attn.q_proj"


def round_to(dtype: str, exact: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float64 rounded once, half to even, and the width of a step there. numpy has no bfloat16: its 8 bits by hand."""
    if dtype == "float16":
        rounded = exact.astype(np.float16)
        return rounded.astype(np.float64), np.spacing(np.abs(rounded)).astype(np.float64)
    fraction, exponent = np.frexp(exact)
    return np.ldexp(np.rint(np.ldexp(fraction, 8)), exponent - 8), np.ldexp(1.0, exponent - 8)


def peft_cat(base: Path, adapters: list[tuple[Path, float]]) -> Any:
    """PEFT's exact mix, merged into a plain model in float32."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    mixed = PeftModel.from_pretrained(model, adapters[0][0], adapter_name="0")
    for number, (folder, _) in enumerate(adapters[1:], 1):
        mixed.load_adapter(folder, str(number))
    names = [str(number) for number in range(len(adapters))]
    mixed.add_weighted_adapter(names, [weight for _, weight in adapters], "mix", combination_type="cat")
    mixed.set_adapter("mix")
    return mixed.merge_and_unload()


# --- the arithmetic -------------------------------------------------------------------------------------------------

PAIRS = {
    "two alike": ("llama", {}, {}),
    "other ranks and alphas": ("llama", {"r": 2, "lora_alpha": 3}, {"r": 7, "lora_alpha": 16}),
    "other targets": ("llama", {"target_modules": ["q_proj", "up_proj"]}, {"target_modules": ["q_proj", "v_proj"]}),
    "a head of its own": ("llama", {"target_modules": ["lm_head"]}, {"target_modules": ["lm_head", "o_proj"]}),
    "Conv1D": (
        "gpt2",
        {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True},
        {"target_modules": ["c_attn"], "fan_in_fan_out": True, "r": 3},
    ),
}
# PEFT scales a mix of these wrongly, so only algebra judges them
ALGEBRA_ONLY = {
    "rank-stabilised": ("llama", {"use_rslora": True}, {"use_rslora": True, "r": 9}),
    "one of two rank-stabilised": ("llama", {"use_rslora": True}, {}),
    "rank and alpha patterns": (
        "llama",
        {"rank_pattern": {"q_proj": 2, r"layers\.1\..*down_proj": 6}, "alpha_pattern": {"v_proj": 32}},
        {"alpha_pattern": {r"layers\.0\.mlp\.up_proj": 1}},
    ),
    "rank-stabilised with patterns": (
        "llama",
        {"use_rslora": True, "rank_pattern": {"k_proj": 1}, "alpha_pattern": {"k_proj": 5}},
        {"r": 5},
    ),
}


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
def test_a_float32_merge_answers_as_pefts_cat_does(pair, make_base, make_adapter, mix, logits_of):
    kind, first, second = pair
    base = make_base(kind)
    adapters = [(make_adapter(base, 1, **first), 0.4), (make_adapter(base, 2, **second), 0.7)]
    out, _ = mix(base, adapters)
    expected = logits_of(peft_cat(base, adapters))
    assert (expected - logits_of(base)).abs().max() > 0.1
    assert (logits_of(out) - expected).abs().max() < 1e-4


@pytest.mark.parametrize("pair", (PAIRS | ALGEBRA_ONLY).values(), ids=PAIRS | ALGEBRA_ONLY)
def test_a_float32_merge_is_the_base_and_the_weighted_deltas(pair, make_base, make_adapter, mix, deltas, read_weights):
    kind, first, second = pair
    base = make_base(kind)
    adapters = [(make_adapter(base, 1, **first), -0.4), (make_adapter(base, 2, **second), 1.3)]
    out, report = mix(base, adapters)
    expected = read_weights(base)
    for folder, weight in adapters:
        for name, delta in deltas(base, folder).items():
            expected[name] = expected[name] + weight * delta
    merged = read_weights(out)
    assert merged.keys() == expected.keys()
    for name, exact in expected.items():
        np.testing.assert_allclose(merged[name], exact, rtol=1e-6, atol=1e-6, err_msg=name)
    touched = {name for folder, _ in adapters for name in deltas(base, folder)}
    assert [tensor.name for tensor in report.tensors] == sorted(touched)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_half_precision_merge_is_the_exact_sum_rounded_once(
    dtype, make_base, make_adapter, mix, deltas, read_weights
):
    base = make_base(dtype=dtype)
    adapters = [(make_adapter(base, 1), 0.5), (make_adapter(base, 2, r=6), 0.5)]
    out, _ = mix(base, adapters)
    before, after = read_weights(base), read_weights(out)
    both = [deltas(base, folder) for folder, _ in adapters]
    equal = count = 0
    for name in both[0]:
        exact = before[name] + 0.5 * both[0][name] + 0.5 * both[1][name]
        rounded, step = round_to(dtype, exact)
        assert (np.abs(after[name] - rounded) <= step).all(), name
        equal += int((after[name] == rounded).sum())
        count += rounded.size
    assert equal / count >= 0.999, f"{equal} of {count} weights equal the once-rounded sum"


def test_many_blocks_give_the_weights_of_one(make_base, make_adapter, mix, read_weights, monkeypatch):
    base = make_base(dtype="bfloat16")
    adapters = [(make_adapter(base, 1), 0.5), (make_adapter(base, 2), 0.5)]
    whole, _ = mix(base, adapters, dtype="float32")
    monkeypatch.setattr(merging, "BLOCK_BYTES", 1000)  # no multiple of a row: blocks are cut at rows
    in_blocks, _ = mix(base, adapters, dtype="float32")
    for name, weight in read_weights(whole).items():
        np.testing.assert_allclose(read_weights(in_blocks)[name], weight, rtol=1e-6, atol=1e-7)


def test_factor_mixes_a_and_b_apart_from_end_to_end(base, make_adapter, mix, read_weights):
    folders = [make_adapter(base, 1), make_adapter(base, 2, target_modules=["q_proj", "v_proj"])]
    out, _ = mix(base, [(folders[0], 0.3), (folders[1], 0.7)], method="factor")
    before, after = read_weights(base), read_weights(out)
    one, two = (load_file(folder / "adapter_model.safetensors") for folder in folders)
    for name in after:
        key = "base_model.model." + name.removesuffix(".weight") + ".lora_{}.weight"
        if key.format("A") not in one:
            continue
        a, b = 0.3 * one[key.format("A")].double(), 0.3 * one[key.format("B")].double()
        if key.format("A") in two:
            a, b = a + 0.7 * two[key.format("A")].double(), b + 0.7 * two[key.format("B")].double()
        exact = before[name] + 8 / 4 * (b @ a).numpy()
        np.testing.assert_allclose(after[name], exact, rtol=1e-6, atol=1e-6, err_msg=name)


def test_factor_refuses_other_ranks_and_points_to_linear(base, make_adapter, mix):
    with pytest.raises(RecipeError, match="rank 4 scale 2, rank 8 scale 1"):
        mix(base, [(make_adapter(base, 1), 0.5), (make_adapter(base, 2, r=8), 0.5)], method="factor")


# --- what is kept ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shard", ["1GB", "40KB"], ids=["one file", "sharded"])
def test_what_no_adapter_touches_is_kept_byte_for_byte(shard, make_base, make_adapter, mix, read_layout):
    base = make_base(dtype="bfloat16", shard=shard)
    out, report = mix(base, [(make_adapter(base, 1, target_modules=["q_proj", "down_proj"]), 1.0)])
    files = sorted(path.name for path in base.glob("*.safetensors"))
    assert (len(files) > 2) == (shard == "40KB")
    assert sorted(path.name for path in out.glob("*.safetensors")) == files
    copied = 0
    for file in files:
        (old_header, old), (new_header, new) = read_layout(base / file), read_layout(out / file)
        assert list(new) == sorted(old, key=lambda name: old_header[name]["data_offsets"])
        assert new_header["__metadata__"] == {"format": "pt"}
        for name, data in old.items():
            assert new_header[name] == old_header[name]
            touched = name.endswith(("q_proj.weight", "down_proj.weight"))
            assert (new[name] == data) != touched, name
            copied += not touched
    assert (len(report.tensors), report.copied_tensors) == (4, copied)
    for path in base.iterdir():
        if path.suffix != ".safetensors" and path.name != "README.md":
            assert (out / path.name).read_bytes() == path.read_bytes()


def test_code_other_formats_and_the_bases_card_are_left_out_and_named(base, make_adapter, mix, tmp_path):
    copy = shutil.copytree(base, tmp_path / "base")
    for name in ("pytorch_model.bin", ".hidden", "stray.safetensors", "chat_template.txt"):
        (copy / name).write_text("x")
    (copy / "onnx").mkdir()
    out, report = mix(copy, [(make_adapter(base), 1.0)])
    assert set(report.left_out) == {"pytorch_model.bin", ".hidden", "stray.safetensors", "onnx", "README.md"}
    assert {"config.json", "tokenizer.json", "LICENSE", "chat_template.txt"} <= set(report.carried)
    assert {path.name for path in out.iterdir()} == {*report.carried, "model.safetensors"}


def test_an_index_that_the_base_does_not_go_by_is_left_out(base, make_adapter, mix, tmp_path):
    copy = shutil.copytree(base, tmp_path / "base")
    stale = {"metadata": {}, "weight_map": {"gone": "model-00001-of-00001.safetensors"}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(stale))
    for dtype in (None, "bfloat16"):
        out, report = mix(copy, [(make_adapter(base), 1.0)], dtype=dtype)
        assert "model.safetensors.index.json" in report.left_out
        assert not (out / "model.safetensors.index.json").exists()


@pytest.mark.parametrize(
    ("stored", "wanted"), [("float32", "bfloat16"), ("bfloat16", "float32"), ("float32", "float16")]
)
def test_another_dtype_is_written_into_every_tensor_the_config_and_the_index(
    stored, wanted, make_base, make_adapter, mix, deltas, read_weights, read_layout
):
    base = make_base(dtype=stored, shard="40KB")
    adapter = make_adapter(base, 1, target_modules=["q_proj"])
    out, _ = mix(base, [(adapter, 1.0)], dtype=wanted)
    config = json.loads((out / "config.json").read_text())
    assert config.get("dtype", config.get("torch_dtype")) == wanted
    code = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}[wanted]
    layouts = [read_layout(path) for path in sorted(out.glob("*.safetensors"))]
    assert {header[name]["dtype"] for header, tensors in layouts for name in tensors} == {code}
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(len(data) for _, tensors in layouts for data in tensors.values())
    assert index["weight_map"] == json.loads((base / "model.safetensors.index.json").read_text())["weight_map"]
    before, after, delta = read_weights(base), read_weights(out), deltas(base, adapter)
    for name, old in before.items():
        exact = old + delta.get(name, 0.0)
        if wanted == "float32":
            np.testing.assert_allclose(after[name], exact, rtol=1e-6, atol=1e-7)
        else:
            rounded, step = round_to(wanted, exact)
            assert (np.abs(after[name] - rounded) <= (step if name in delta else 0)).all()
    assert AutoModelForCausalLM.from_pretrained(out).dtype == getattr(torch, wanted)


def test_the_number_of_threads_does_not_show_in_the_bytes(make_base, make_adapter, mix):
    base = make_base(dtype="bfloat16", shard="40KB")
    adapters = [(make_adapter(base, 1), 0.5), (make_adapter(base, 2), 0.5)]
    one, first = mix(base, adapters, threads=1)
    four, second = mix(base, adapters, threads=4)
    assert first == second
    assert all((four / path.name).read_bytes() == path.read_bytes() for path in one.iterdir())


def test_a_tied_base_is_merged_and_stays_tied(make_base, make_adapter, mix, logits_of):
    base = make_base(tied=True)
    adapters = [(make_adapter(base, 1), 0.5), (make_adapter(base, 2), 0.5)]
    out, _ = mix(base, adapters)
    assert "lm_head.weight" not in load_file(out / "model.safetensors")
    assert (logits_of(out) - logits_of(peft_cat(base, adapters))).abs().max() < 1e-4


# --- the report -----------------------------------------------------------------------------------------------------


def test_the_report_tells_each_deltas_norm_and_adapters(base, make_adapter, mix, deltas):
    first, second = make_adapter(base, 1), make_adapter(base, 2, r=3, target_modules=["q_proj"])
    _, report = mix(base, [(first, 0.25), (second, 2.0)])
    for tensor in report.tensors:
        delta = 0.25 * deltas(base, first)[tensor.name] + 2.0 * deltas(base, second).get(tensor.name, 0.0)
        assert tensor.delta_norm == pytest.approx(np.linalg.norm(delta), rel=1e-5)
        assert (tensor.adapters, tensor.rank) == ((2, 7) if "q_proj" in tensor.name else (1, 4))
        assert tensor.lost < 1e-5
        assert tensor.changed > 0.99


def test_the_rank_of_a_factor_mix_is_that_of_its_adapters(base, make_adapter, mix):
    _, report = mix(base, [(make_adapter(base, 1), 0.5), (make_adapter(base, 2), 0.5)], method="factor")
    assert {tensor.rank for tensor in report.tensors} == {4}


@pytest.mark.parametrize(("size", "lost", "changed"), [(1e-7, (0.99, 1.01), (0, 0.01)), (10.0, (0, 0.01), (0.99, 1))])
def test_the_report_tells_how_much_of_a_delta_rounding_swallowed(
    size, lost, changed, make_base, make_adapter, mix, deltas, read_weights
):
    base = make_base(dtype="bfloat16")
    adapter = make_adapter(base, 1)
    out, report = mix(base, [(adapter, size)])
    before, after = read_weights(base), read_weights(out)
    for tensor in report.tensors:
        exact = size * deltas(base, adapter)[tensor.name]
        missing = after[tensor.name] - before[tensor.name] - exact
        assert tensor.lost == pytest.approx(np.linalg.norm(missing) / np.linalg.norm(exact), rel=1e-2)
        assert lost[0] <= tensor.lost <= lost[1]
        assert tensor.changed == np.mean(after[tensor.name] != before[tensor.name])
        assert changed[0] <= tensor.changed <= changed[1]
    summary = report.summary()
    assert lost[0] <= summary["median_lost_to_rounding"] <= summary["worst_lost_to_rounding"] <= lost[1]


def test_a_weight_of_zero_changes_nothing_and_loses_nothing(base, make_adapter, mix):
    out, report = mix(base, [(make_adapter(base), 0.0)])
    assert (out / "model.safetensors").stat().st_size == (base / "model.safetensors").stat().st_size
    assert {(t.delta_norm, t.lost, t.changed) for t in report.tensors} == {(0.0, 0.0, 0.0)}


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_progress_sums_to_the_bytes_of_the_base(dtype, make_base, make_adapter, mix):
    base, told = make_base(shard="40KB"), []
    mix(base, [(make_adapter(base), 1.0)], dtype=dtype, progress=told.append)
    assert sum(told) == inspect_base(base).bytes
    assert min(told) > 0


# --- refusals and failures ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight", [float("nan"), float("inf")])
def test_a_weight_that_is_no_finite_number_is_refused(weight, base, make_adapter, mix):
    with pytest.raises(MergeError, match=str(weight)):
        mix(base, [(make_adapter(base), weight)])


def test_a_merge_of_nothing_is_refused(base, mix):
    with pytest.raises(MergeError, match="at least one adapter"):
        mix(base, [])


@pytest.mark.parametrize(("dtype", "named"), [(torch.int8, "I8"), (torch.float64, "F64")])
def test_a_base_weight_that_is_no_float_we_round_to_is_refused_by_name(dtype, named, base, make_adapter, mix, tmp_path):
    copy = shutil.copytree(base, tmp_path / "base")
    tensors = load_file(copy / "model.safetensors")
    tensors[f"{FIRST}.weight"] = tensors[f"{FIRST}.weight"].to(dtype)
    save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(UnsupportedAdapterError, match=rf"{FIRST}\.weight', which the base model stores as {named}"):
        mix(copy, [(make_adapter(base), 1.0)])


@pytest.mark.parametrize("name", [f"{FIRST}.weight", "model.norm.weight"], ids=["merged", "copied"])
def test_a_weight_too_large_for_float16_is_refused_by_name(name, base, make_adapter, mix, tmp_path):
    copy = shutil.copytree(base, tmp_path / "base")
    tensors = load_file(copy / "model.safetensors")
    tensors[name].view(-1)[0] = 1e6
    save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(MergeError, match=rf"{name} does not stay finite in F16"):
        mix(copy, [(make_adapter(base), 1.0)], dtype="float16")


def test_a_broken_adapter_is_refused_where_it_would_break_a_weight(base, write_adapter, mix):
    broken = write_adapter(base, {FIRST: (torch.full((1, 64), float("nan")), torch.ones(64, 1))})
    with pytest.raises(MergeError, match=rf"{FIRST}\.weight does not stay finite"):
        mix(base, [(broken, 0.0)])


def test_a_file_that_is_there_is_never_written_over(base, make_adapter, parts_of, tmp_path):
    (tmp_path / "model.safetensors").write_text("precious")
    with pytest.raises(FileExistsError):
        merging.merge_all(base, inspect_base(base), [Mix(parts_of(base, [(make_adapter(base), 1.0)]), tmp_path)])
    assert (tmp_path / "model.safetensors").read_text() == "precious"


def full_disk_after(writes: int) -> Callable[..., int]:
    done = iter(range(writes))
    write = os.pwrite

    def pwrite(fd: int, data: memoryview, offset: int) -> int:
        if next(done, None) is None:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(fd, data, offset)

    return pwrite


@pytest.mark.parametrize("writes", [0, 1, 5])
def test_a_full_disk_is_reported_as_it_is(writes, base, make_adapter, mix, monkeypatch):
    monkeypatch.setattr(os, "pwrite", full_disk_after(writes))
    with pytest.raises(OSError, match="No space left"):
        mix(base, [(make_adapter(base), 1.0)])


def test_no_thread_goes_on_writing_after_a_merge_has_failed(base, make_adapter, mix, monkeypatch):
    """Its file would be closed under it, and the number of a closed file may by then be that of another, say a database."""
    running, started = set(), threading.Event()
    copy = merging._Run._copied

    def slow(run, result, output, shard, source):
        running.add(output.info.name)
        started.set()
        time.sleep(0.2)
        done = copy(run, result, output, shard, source)
        running.discard(output.info.name)
        return done

    def fail(*_):
        assert started.wait(60)
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(merging._Run, "_copied", slow)
    monkeypatch.setattr(merging._Run, "_pour", fail)
    with pytest.raises(OSError, match="Input/output"):
        mix(base, [(make_adapter(base), 1.0)], threads=4)
    assert not running


def test_a_base_that_shrinks_while_it_is_read_is_an_error(base, make_adapter, mix, tmp_path, monkeypatch):
    copy = shutil.copytree(base, tmp_path / "base")
    adapters = [(make_adapter(base), 1.0)]

    def late(path, read=merging.read_header):
        header = read(path)
        if header.path.parent == copy:
            with header.path.open("r+b") as file:
                file.truncate(header.size - 1000)
        return header

    monkeypatch.setattr(merging, "read_header", late)
    with pytest.raises(MergeError, match="became shorter"):
        mix(copy, adapters)


def test_torchs_threads_are_given_back_after_a_merge_that_fails(base, make_adapter, mix, monkeypatch):
    monkeypatch.setattr(os, "pwrite", full_disk_after(3))
    torch.set_num_threads(2)
    try:
        with pytest.raises(OSError, match="No space"):
            mix(base, [(make_adapter(base), 1.0)])
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


def test_adapters_that_disagree_about_the_layout_of_a_weight_are_refused(make_base, make_adapter, parts_of, tmp_path):
    base = make_base()
    parts = parts_of(base, [(make_adapter(base, 1, target_modules=["o_proj"]), 0.5)] * 2)
    module = replace(parts[1].facts.modules[0], transposed=True)
    turned = replace(parts[1], facts=replace(parts[1].facts, modules=(module, *parts[1].facts.modules[1:])))
    with pytest.raises(MergeError, match=r"disagree about fan_in_fan_out of .*o_proj\.weight"):
        merging.merge_all(base, inspect_base(base), [Mix([parts[0], turned], tmp_path)])


# --- several results in one pass ------------------------------------------------------------------------------------


@pytest.mark.parametrize("shard", ["1GB", "40KB"])
def test_several_mixes_in_one_pass_are_the_bytes_of_each_alone(shard, make_base, make_adapter, mix, parts_of, tmp_path):
    base = make_base(dtype="bfloat16", shard=shard)
    one, two = make_adapter(base, 1), make_adapter(base, 2, target_modules=["q_proj", "lm_head"], r=2)
    wanted = [
        ([(one, 0.5), (two, 0.5)], {}),
        ([(two, 1.0)], {"dtype": "float32"}),
        ([(one, 1.0), (two, 1.0)], {"method": "ties_mergekit", "options": {"density": 0.5}}),
    ]
    mixes = []
    for number, (adapters, options) in enumerate(wanted):
        out = tmp_path / f"together-{number}"
        out.mkdir()
        mixes.append(Mix(parts_of(base, adapters), out, **options))
    reports = merging.merge_all(base, inspect_base(base), mixes)
    for (adapters, options), made, report in zip(wanted, mixes, reports, strict=True):
        alone, report_alone = mix(base, adapters, **options)
        assert report == report_alone
        names = sorted(path.name for path in alone.iterdir())
        assert sorted(path.name for path in made.out.iterdir()) == names
        assert all((made.out / name).read_bytes() == (alone / name).read_bytes() for name in names)


def test_the_digests_of_a_report_are_those_of_the_files(make_base, make_adapter, mix):
    base = make_base(dtype="bfloat16", shard="40KB")
    out, report = mix(base, [(make_adapter(base, 1), 0.5)])
    shards = sorted(out.glob("*.safetensors"))
    assert report.digests == {p.name: f"sha256:{hashlib.sha256(p.read_bytes()).hexdigest()}" for p in shards}
    assert len(shards) > 1


def test_trained_tokens_reach_a_head_that_another_adapter_unties(make_base, make_adapter, mix, deltas, tmp_path):
    """PEFT writes a tied head's tokens once, under the embedding's name; both must have them when they are parted."""
    base = make_base(tied=True)
    trained = shutil.copytree(
        make_adapter(base, 1, target_modules=["q_proj"], trainable_token_indices=[3, 5]), tmp_path / "tokens"
    )
    tensors = load_file(trained / "adapter_model.safetensors")
    (name,) = (name for name in tensors if "trainable_tokens_delta" in name)
    tensors[name] = tensors[name] + 1.0
    save_file(tensors, trained / "adapter_model.safetensors", {"format": "pt"})
    on_head = make_adapter(base, 2, target_modules=["lm_head"])
    out, report = mix(base, [(trained, 1.0), (on_head, 1.0)])
    made = load_file(out / "model.safetensors")
    assert any("are two now" in note for note in report.notes)
    factors = load_file(on_head / "adapter_model.safetensors")
    a, b = (next(t for key, t in factors.items() if f"lora_{side}" in key).double() for side in "AB")
    for row, index in enumerate((3, 5)):
        torch.testing.assert_close(made["model.embed_tokens.weight"][index], tensors[name][row])
        expected = tensors[name][row].double() + 2.0 * (b @ a)[index]
        torch.testing.assert_close(made["lm_head.weight"][index].double(), expected, rtol=1e-5, atol=1e-5)
