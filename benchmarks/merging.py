"""What it costs to merge two LoRAs into a checkpoint, beside `cp -r`, PEFT and mergekit; how much memory; how exact.

    python benchmarks/merging.py [--folder DIR] [--rounds 5] [--peers 3] [--quick] [--mergekit-python PATH | --no-mergekit]

The base is a random Qwen2 of 1.5 billion bfloat16 parameters in 4 shards (3.1 GB), the adapters are of rank 16 on all linear layers.
Everything is a process of its own, timed from start to end; the ways take turns, so that drift hits them alike; the inputs are in the page
cache; results are removed between runs. RssAnon is sampled while the processes run. `--quick` leaves out the base twice as deep and the
four mixes. The work folder (about 30 GB at the most) is removed unless `--folder` names one: there the base is kept for the next time.

Peers, as their documentation has it: PEFT loads the base in bfloat16, mixes by `add_weighted_adapter(…, "cat")`, merges and saves;
mergekit runs `task_arithmetic` over BASE+LORA. It is no dependency of ours and lives in an environment of its own: PATH is the Python of
one; unless told, it is made once in the temporary folder, which downloads a few gigabytes (its torch is the one for CUDA).

The first run of our command knows nothing of the base and digests it; the second remembers the digest. `engine` is the merge itself,
without and with what it does beside it: digests of what was written, fsync.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

# torch and what needs it are imported where they are used: processes that are timed start from this file too.

LAYERS, SHARDS = 28, 4
HIDDEN, INTERMEDIATE, HEADS, KV_HEADS, VOCABULARY = 1536, 8960, 12, 2, 151_936
RANK, ALPHA = 16, 32
WEIGHTS = (0.4, 0.6)
MIXES = ((0.4, 0.6), (0.5, 0.5), (1.0, 0.0), (0.2, 0.9))
MERGEKIT_CACHE = "mergekit-cache"
IN_MEMORY = Path("/dev/shm")

CP, CP_SYNC, PEFT, MERGEKIT = "cp -r", "cp -r && sync", "PEFT", "mergekit"
OURS, AGAIN = "reccocktail merge", "… of a base it knows"
BARE, DIGESTS, SYNCED, ENGINE = "engine, bare", "engine, digests", "engine, fsync", "engine, digests and fsync"
EXTRAS = {BARE: "", DIGESTS: "digests", SYNCED: "fsync", ENGINE: "digests fsync"}

FASTER_THAN_PEFT, FASTER_THAN_MERGEKIT = 7.0, 15.0
OF_CP = 2.5
ANONYMOUS, DEEPER = 400, 50  # MB
FOUR_OF_FOUR = 0.8
EQUAL = 0.999


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="work folder: the disk to be measured; its base is kept")
    parser.add_argument("--rounds", type=int, default=5, help="of cp and of ours")
    parser.add_argument("--peers", type=int, default=3, help="rounds of the slow peers; 0: none")
    parser.add_argument("--quick", action="store_true", help="without the deeper base and the four mixes")
    parser.add_argument("--mergekit-python", type=Path, metavar="PATH", help="a Python that has mergekit")
    parser.add_argument("--no-mergekit", action="store_true")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        way, *arguments = options.child
        CHILDREN[way](*arguments)
        return
    if options.folder:
        options.folder.mkdir(parents=True, exist_ok=True)
        reached = measure(options.folder, options)
    else:
        with tempfile.TemporaryDirectory(prefix="reccocktail-bench-") as name:
            reached = measure(Path(name), options)
    sys.exit(not reached)


# --- the inputs -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Inputs:
    """A base and the two adapters for it."""

    base: Path
    adapters: tuple[Path, Path]

    def warm(self) -> None:
        """Read everything once, so that it is in the page cache."""
        for folder in (self.base, *self.adapters):
            for path in folder.iterdir():
                with path.open("rb", buffering=0) as file:
                    while file.read(1 << 24):
                        pass


def make_inputs(place: Path, layers: int) -> Inputs:
    """Those of an earlier run, if they are there."""
    base = once(place / f"base-{layers}", lambda folder: make_base(folder, layers))
    adapters = [once(place / f"lora-{layers}-{n}", lambda folder, n=n: make_adapter(folder, layers, n)) for n in (1, 2)]
    return Inputs(base, (adapters[0], adapters[1]))


def once(folder: Path, make: Callable[[Path], None]) -> Path:
    if not folder.exists():
        half = folder.with_suffix(".part")
        shutil.rmtree(half, ignore_errors=True)
        half.mkdir()
        make(half)
        half.rename(folder)
    return folder


def linear_shapes() -> dict[str, tuple[int, int]]:
    """(out, in) of the linear modules of a layer."""
    keys = HIDDEN // HEADS * KV_HEADS
    return {
        "self_attn.q_proj": (HIDDEN, HIDDEN),
        "self_attn.k_proj": (keys, HIDDEN),
        "self_attn.v_proj": (keys, HIDDEN),
        "self_attn.o_proj": (HIDDEN, HIDDEN),
        "mlp.gate_proj": (INTERMEDIATE, HIDDEN),
        "mlp.up_proj": (INTERMEDIATE, HIDDEN),
        "mlp.down_proj": (HIDDEN, INTERMEDIATE),
    }


def shapes(layers: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """All tensors of the base, in the model's order; the head is the embedding."""
    yield "model.embed_tokens.weight", (VOCABULARY, HIDDEN)
    for layer in range(layers):
        for module, shape in linear_shapes().items():
            yield f"model.layers.{layer}.{module}.weight", shape
            if module.endswith(("q_proj", "k_proj", "v_proj")):
                yield f"model.layers.{layer}.{module}.bias", shape[:1]
        yield f"model.layers.{layer}.input_layernorm.weight", (HIDDEN,)
        yield f"model.layers.{layer}.post_attention_layernorm.weight", (HIDDEN,)
    yield "model.norm.weight", (HIDDEN,)


def make_base(folder: Path, layers: int) -> None:
    """Random weights of standard deviation .02, one shard in memory at a time."""
    import torch
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen2Config

    rng = torch.Generator().manual_seed(0)
    index: dict[str, Any] = {"metadata": {"total_size": sum(sizes(layers).values())}, "weight_map": {}}
    for number, names in enumerate(shards(layers), 1):
        file = f"model-{number:05}-of-{SHARDS:05}.safetensors"
        tensors = {
            name: torch.ones(shape, dtype=torch.bfloat16)
            if "norm" in name
            else torch.empty(shape, dtype=torch.bfloat16).normal_(std=0.02, generator=rng)
            for name, shape in names.items()
        }
        save_file(tensors, folder / file, metadata={"format": "pt"})
        index["weight_map"] |= dict.fromkeys(names, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    Qwen2Config(
        architectures=["Qwen2ForCausalLM"],
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=INTERMEDIATE,
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        tie_word_embeddings=True,
        dtype="bfloat16",
    ).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({"<unk>": 0, "<pad>": 1, "</s>": 2}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="<unk>", pad_token="<pad>", eos_token="</s>"
    ).save_pretrained(folder)


def sizes(layers: int) -> dict[str, int]:
    """Bytes of every tensor."""
    return {name: 2 * shape[0] * (shape[1] if len(shape) > 1 else 1) for name, shape in shapes(layers)}


def shards(layers: int) -> list[dict[str, tuple[int, ...]]]:
    """Consecutive tensors, about the same number of bytes in each."""
    bytes_of, found, before = sizes(layers), [{} for _ in range(SHARDS)], 0
    for name, shape in shapes(layers):
        found[before * SHARDS // sum(bytes_of.values())][name] = shape
        before += bytes_of[name]
    return found


def make_adapter(folder: Path, layers: int, seed: int) -> None:
    """Random factors; the delta's standard deviation is 5e-4, a fortieth of the weights'."""
    import torch
    from safetensors.torch import save_file

    rng = torch.Generator().manual_seed(seed)
    each = (5e-4 * RANK / ALPHA / RANK**0.5) ** 0.5
    factors = {}
    for layer in range(layers):
        for module, (out, into) in linear_shapes().items():
            name = f"base_model.model.model.layers.{layer}.{module}"
            factors[f"{name}.lora_A.weight"] = each * torch.randn(RANK, into, generator=rng)
            factors[f"{name}.lora_B.weight"] = each * torch.randn(out, RANK, generator=rng)
    save_file(factors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": f"base-{layers}",
        "r": RANK,
        "lora_alpha": ALPHA,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": sorted(module.rpartition(".")[2] for module in linear_shapes()),
    }
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2))


# --- processes ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """A process from start to end: seconds, the most anonymous and resident memory in bytes, and what it printed."""

    seconds: float
    anonymous: int
    resident: int
    stdout: str


def watch(command: Sequence[str | Path]) -> Run:
    """Run it with all cores, whatever OMP_NUM_THREADS says; memory is looked at every 20 ms."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    environment |= {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = threading.Event()
    seen = {"RssAnon": 0, "VmHWM": 0}
    with tempfile.TemporaryFile("w+") as stdout, tempfile.TemporaryFile("w+") as complained:
        begun = time.perf_counter()
        process = subprocess.Popen(command, stdout=stdout, stderr=complained, env=environment)
        watcher = threading.Thread(target=watch_memory, args=(process.pid, seen, done))
        watcher.start()
        failed = process.wait()
        seconds = time.perf_counter() - begun
        done.set()
        watcher.join()
        stdout.seek(0)
        complained.seek(0)
        if failed:
            raise SystemExit(f"{' '.join(map(str, command))} failed:\n{complained.read()[-4000:]}")
        return Run(seconds, seen["RssAnon"], seen["VmHWM"], stdout.read())


def watch_memory(pid: int, seen: dict[str, int], done: threading.Event) -> None:
    while not done.wait(0.02):
        try:
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        except OSError:
            return
        for line in lines:
            name, _, rest = line.partition(":")
            if name in seen:
                seen[name] = max(seen[name], 1024 * int(rest.split()[0]))


def merge_by_engine(base: str, first: str, second: str, out: str, mixes: str, extras: str) -> None:
    """The engine alone, into folders below `out`, several mixes in one pass; prints how long importing and merging took.

    The engine syncs and digests what it wrote while it merges; `extras` says which of these it really does.
    """
    begun = time.perf_counter()
    from reccocktail.engine.merging import stream as merge
    from reccocktail.engine.merging.plan import Mix, Part
    from reccocktail.registry.artifacts.inspect import inspect_adapter, inspect_base

    if "fsync" not in extras:
        os.fsync = lambda _: None
    if "digests" not in extras:
        merge.file_digest = lambda _: ""
    imported = time.perf_counter() - begun
    facts = inspect_base(Path(base))
    named = [
        (Path(folder), inspect_adapter(Path(folder), facts, base_names=[Path(base).name])) for folder in (first, second)
    ]
    asked = []
    for number, weights in enumerate(MIXES[: int(mixes)]):
        parts = [Part(folder, fact, weight) for (folder, fact), weight in zip(named, weights, strict=True)]
        asked.append(Mix(parts, Path(out) / str(number)))
        asked[-1].out.mkdir(parents=True)
    started = time.perf_counter()
    merge.merge_all(Path(base), facts, asked)
    print(json.dumps({"import": imported, "merge": time.perf_counter() - started}))


def merge_by_peft(base: str, first: str, second: str, out: str) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    model = PeftModel.from_pretrained(model, first, adapter_name="first")
    model.load_adapter(second, adapter_name="second")
    model.add_weighted_adapter(["first", "second"], list(WEIGHTS), "mix", combination_type="cat")
    model.set_adapter("mix")
    merged: Any = model.merge_and_unload(adapter_names=["mix"])
    merged.save_pretrained(out, max_shard_size="800MB")
    AutoTokenizer.from_pretrained(base).save_pretrained(out)


CHILDREN: dict[str, Callable[..., None]] = {"engine": merge_by_engine, "peft": merge_by_peft}


def child(way: str, inputs: Inputs, out: Path, *arguments: str) -> list[str | Path]:
    return [sys.executable, __file__, "--child", way, inputs.base, *inputs.adapters, out, *arguments]


def our_command(inputs: Inputs, out: Path, home: Path) -> list[str | Path]:
    """`home` is where the digests of bases are remembered."""
    mix = [
        argument
        for folder, weight in zip(inputs.adapters, WEIGHTS, strict=True)
        for argument in ("-a", f"{folder}={weight}")
    ]
    command = Path(sys.executable).with_name("reccocktail")
    return [command, "--home", home, "merge", inputs.base, *mix, "-o", out, "--device", "cpu"]


def mergekit_command(python: Path, inputs: Inputs, out: Path) -> list[str | Path]:
    models = [
        {"model": f"{inputs.base}+{folder}", "parameters": {"weight": weight}}
        for folder, weight in zip(inputs.adapters, WEIGHTS, strict=True)
    ]
    config = {
        "merge_method": "task_arithmetic",
        "base_model": str(inputs.base),
        "models": models,
        "parameters": {"normalize": False},
        "dtype": "bfloat16",
    }
    config_file = out.with_name("mergekit.yaml")
    config_file.write_text(json.dumps(config))  # JSON is YAML
    cache = out.with_name(MERGEKIT_CACHE)  # where it puts base and LoRA merged, one after the other
    shutil.rmtree(cache, ignore_errors=True)
    return [python.with_name("mergekit-yaml"), config_file, out, "--lora-merge-cache", cache, "--quiet"]


def find_mergekit(python: Path | None) -> Path:
    """The Python of an environment with mergekit: the one given, or the one that mergekit_oracle.py makes."""
    from mergekit_oracle import made_python

    found = python or made_python()
    if not found.with_name("mergekit-yaml").exists():
        raise SystemExit(
            f"{found} has no mergekit-yaml beside it; install mergekit there, or leave out --mergekit-python"
        )
    return found


# --- figures --------------------------------------------------------------------------------------------------------


@dataclass
class Verdict:
    """Figures with limits, as they are found."""

    lines: list[str] = field(default_factory=list)
    reached: bool = True

    def hold(self, what: str, value: float, limit: float, *, least: bool = False, form: str = ".2f") -> None:
        kept = value >= limit if least else value <= limit
        self.lines.append(
            f"{what:64} {value:10{form}}   (at {'least' if least else 'most'} {limit:{form}}: {'kept' if kept else 'MISSED'})"
        )
        self.reached &= kept


@dataclass(frozen=True)
class Bench:
    """A work folder with the inputs in it."""

    place: Path
    inputs: Inputs
    rounds: int
    peers: int
    mergekit: Path | None

    @property
    def out(self) -> Path:
        return self.place / "out"

    @property
    def home(self) -> Path:
        return self.place / "home"

    def kept(self, way: str) -> Path:
        """Where the result of a way stays, to be compared."""
        return self.place / f"out-{way.partition(' ')[0]}"

    def run(self, command: Sequence[str | Path], out: Path, *, keep: bool = False) -> Run:
        """Once, when the disk is quiet; what it writes to `out` is removed unless it is to be kept."""
        shutil.rmtree(out, ignore_errors=True)
        os.sync()
        run = watch(command)
        if not keep:
            shutil.rmtree(out)
        return run

    def take_turns(self) -> dict[str, list[Run]]:
        """All ways in each round, the peers in some."""
        inputs, out = self.inputs, self.out
        runs: dict[str, list[Run]] = defaultdict(list)
        for way in (OURS, PEFT, MERGEKIT):  # of a run that was interrupted
            shutil.rmtree(self.kept(way), ignore_errors=True)
        inputs.warm()
        copy = ["cp", "-r", inputs.base, out]
        self.run(copy, out)  # nobody's first: memory that the machine has not touched before is slow
        for number in range(max(self.rounds, self.peers)):
            if number < self.rounds:
                runs[CP].append(self.run(copy, out))
                runs[CP_SYNC].append(self.run(["sh", "-c", 'cp -r "$0" "$1" && sync "$1"/*', inputs.base, out], out))
                shutil.rmtree(self.home, ignore_errors=True)
                ours = our_command(inputs, self.kept(OURS), self.home)
                runs[OURS].append(self.run(ours, self.kept(OURS), keep=number == self.rounds - 1))
                runs[AGAIN].append(self.run(our_command(inputs, out, self.home), out))
                for way, extras in EXTRAS.items():
                    runs[way].append(self.run(child("engine", inputs, out, "1", extras), out))
            if number < self.peers:
                theirs = self.kept(PEFT)
                last = number == self.peers - 1
                runs[PEFT].append(self.run(child("peft", inputs, theirs), theirs, keep=last))
            if number < self.peers and self.mergekit:
                theirs = self.kept(MERGEKIT)
                command = mergekit_command(self.mergekit, inputs, theirs)
                runs[MERGEKIT].append(self.run(command, theirs, keep=number == self.peers - 1))
                shutil.rmtree(self.place / MERGEKIT_CACHE)
        return runs


def measure(place: Path, options: argparse.Namespace) -> bool:
    wanted = options.peers and not options.no_mergekit
    mergekit = find_mergekit(options.mergekit_python) if wanted else None
    bench = Bench(place, make_inputs(place, LAYERS), options.rounds, options.peers, mergekit)
    size = sum(file.stat().st_size for file in bench.inputs.base.iterdir())
    print(
        f"Qwen2 of {LAYERS} layers, {size / 1e9:.2f} GB in {SHARDS} shards, two LoRAs of rank {RANK}, {os.cpu_count()} cores,"
        f" warm cache; medians of {options.rounds}, of {options.peers} for PEFT and mergekit",
        flush=True,
    )
    verdict = Verdict()
    runs = bench.take_turns()
    compare_times(runs, verdict)
    compare_results(bench, verdict)
    anonymous = max(run.anonymous for run in runs[OURS]) / 1e6
    verdict.hold("anonymous memory, MB", anonymous, ANONYMOUS, form=".0f")
    if not options.quick:
        verdict.hold("more of it on a base twice as deep, MB", deeper(bench) - anonymous, DEEPER, form=".0f")
        alone = median(run.seconds for run in runs[ENGINE])
        ratio = four_mixes(bench, bench.out) / (len(MIXES) * alone)
        verdict.hold(f"{len(MIXES)} mixes in one pass, of {len(MIXES)} runs", ratio, FOUR_OF_FOUR)
        if in_memory(len(MIXES) * size):
            with tempfile.TemporaryDirectory(prefix="reccocktail-bench-", dir=IN_MEMORY) as name:
                out = Path(name) / "out"
                command = child("engine", bench.inputs, out, "1", EXTRAS[ENGINE])
                alone = median(bench.run(command, out).seconds for _ in range(min(3, bench.rounds)))
                ratio = four_mixes(bench, out) / (len(MIXES) * alone)
            verdict.hold("  the same where no disk is waited for", ratio, FOUR_OF_FOUR)
    print("\n" + "\n".join(verdict.lines))
    return verdict.reached


def compare_times(runs: Mapping[str, Sequence[Run]], verdict: Verdict) -> None:
    taken = {way: median(run.seconds for run in each) for way, each in runs.items()}
    print(f"\n{'whole processes':28} {'s':>7} {'x cp -r':>8} {'RssAnon MB':>11} {'resident MB':>12}   s of each round")
    for way, each in runs.items():
        anonymous, resident = (
            max(values) / 1e6 for values in zip(*((r.anonymous, r.resident) for r in each), strict=True)
        )
        rounds = ", ".join(f"{run.seconds:.2f}" for run in each)
        print(f"{way:28} {taken[way]:7.2f} {taken[way] / taken[CP]:8.2f} {anonymous:11.0f} {resident:12.0f}   {rounds}")

    figures = {way: [json.loads(run.stdout) for run in runs[way]] for way in EXTRAS}
    merging = {way: median(stages["merge"] for stages in each) for way, each in figures.items()}
    starting = median(run.seconds - stages["merge"] for run, stages in zip(runs[ENGINE], figures[ENGINE], strict=True))
    importing = median(stages["import"] for stages in figures[ENGINE])
    print(f"\n{'where the time of our command goes':64} {'s':>7} {'x cp -r':>8}")
    for what, seconds in {
        "Python, imports, headers": starting,
        "  of it importing torch and the engine": importing,
        "reading, adding, rounding, writing": merging[BARE],
        "digests of the result, beside it": merging[DIGESTS] - merging[BARE],
        "fsync of the result, beside both": merging[ENGINE] - merging[DIGESTS],
        "the command, its notes, the model card": taken[AGAIN] - starting - merging[ENGINE],
        "digest of the base, the first time": taken[OURS] - taken[AGAIN],
    }.items():
        print(f"{what:64} {seconds:7.2f} {seconds / taken[CP]:8.2f}")
    print(f"fsync without digests: {merging[SYNCED]:.2f} s", flush=True)

    verdict.hold("the merge itself, x cp -r", merging[BARE] / taken[CP], OF_CP)
    if PEFT in taken:
        verdict.hold("PEFT, x our command", taken[PEFT] / taken[OURS], FASTER_THAN_PEFT, least=True)
    if MERGEKIT in taken:
        verdict.hold("mergekit, x our command", taken[MERGEKIT] / taken[OURS], FASTER_THAN_MERGEKIT, least=True)


def deeper(bench: Bench) -> float:
    """MB of anonymous memory on a base twice as deep."""
    inputs = make_inputs(bench.place, 2 * LAYERS)
    inputs.warm()
    run = bench.run(our_command(inputs, bench.out, bench.home), bench.out)
    print(f"\n{2 * LAYERS} layers: {run.seconds:.2f} s, {run.anonymous / 1e6:.0f} MB of anonymous memory", flush=True)
    return run.anonymous / 1e6


def four_mixes(bench: Bench, out: Path) -> float:
    """Seconds of a process that makes all mixes in one pass, with digests and fsync."""
    bench.inputs.warm()
    command = child("engine", bench.inputs, out, str(len(MIXES)), EXTRAS[ENGINE])
    runs = [bench.run(command, out) for _ in range(min(3, bench.rounds))]
    taken = median(run.seconds for run in runs)
    peak = max(run.anonymous for run in runs) / 1e6
    where = " into memory" if out != bench.out else ""
    print(f"\n{len(MIXES)} mixes in one pass{where}: {taken:.2f} s, {peak:.0f} MB of anonymous memory", flush=True)
    return taken


def in_memory(size: int) -> bool:
    """Whether results of so many bytes fit into a file system in memory, with room for the page cache beside them."""
    if not IN_MEMORY.is_dir():
        return False
    with Path("/proc/meminfo").open() as file:
        free = {line.split(":")[0]: 1024 * int(line.split()[1]) for line in file}["MemAvailable"]
    return min(shutil.disk_usage(IN_MEMORY).free, free) > 1.4 * size


# --- how exact ------------------------------------------------------------------------------------------------------


@dataclass
class Exactness:
    """A result beside float64: how many weights changed or should have, and how many of them are the float64 result rounded once.

    `farthest` counts in bfloat16 steps at the larger of the weight before and after. Where a delta takes a weight to almost zero,
    steps are much finer than float32's sum of the two can be: `cancelled` weights are over one of their own steps away. `strays` are
    tensors that should be the base's and are not.
    """

    changed: int = 0
    equal: int = 0
    farthest: float = 0.0
    cancelled: int = 0
    strays: int = 0


def compare_results(bench: Bench, verdict: Verdict) -> None:
    folders = {way: bench.kept(way) for way in (OURS, PEFT, MERGEKIT) if bench.kept(way).exists()}
    found = exactness(bench.inputs, folders)
    print("\nweights that equal float64 rounded once, of those that changed or should have")
    for way, one in found.items():
        strays = f"; {one.strays} OTHER TENSORS DIFFER" if one.strays else ""
        print(
            f"{way:28} {one.equal / one.changed:9.4%} of {one.changed:,}; the farthest is {one.farthest:.3g} steps away;"
            f" near zero, {one.cancelled:,} by more than their own step{strays}",
            flush=True,
        )
    ours = found[OURS]
    verdict.hold(
        "equal to float64 rounded once, %", 100 * ours.equal / ours.changed, 100 * EQUAL, least=True, form=".4f"
    )
    verdict.hold("bfloat16 steps from it", ours.farthest, 1)
    verdict.hold("tensors without a delta that are not the base's", ours.strays, 0, form=".0f")
    for folder in folders.values():
        shutil.rmtree(folder)


def exactness(inputs: Inputs, folders: Mapping[str, Path]) -> dict[str, Exactness]:
    import torch
    from safetensors import safe_open

    files = {name: tensors_of(folder) for name, folder in {"base": inputs.base, **folders}.items()}
    found = {way: Exactness() for way in folders}
    with ExitStack() as opened:
        adapters = [opened.enter_context(safe_open(a / "adapter_model.safetensors", "pt")) for a in inputs.adapters]
        having = set(adapters[0].keys())

        def tensor(where: str, name: str) -> torch.Tensor:
            with safe_open(files[where][name], "pt") as file:
                return file.get_tensor(name)

        for name in files["base"]:
            old = tensor("base", name)
            module = f"base_model.model.{name.removesuffix('.weight')}"
            results = {way: tensor(way, name) for way in folders}
            if f"{module}.lora_A.weight" not in having:
                for way, result in results.items():
                    found[way].strays += not torch.equal(result, old)
                continue
            factors = [
                (file.get_tensor(f"{module}.lora_A.weight"), file.get_tensor(f"{module}.lora_B.weight"), weight)
                for file, weight in zip(adapters, WEIGHTS, strict=True)
            ]
            a = torch.cat([a for a, _, _ in factors]).double()
            b = torch.cat([b.double() * (weight * ALPHA / RANK) for _, b, weight in factors], dim=1)
            for row in range(0, len(old), 512):
                rows = slice(row, row + 512)
                right = rounded_once(torch.addmm(old[rows].double(), b[rows], a))
                for way, result in results.items():
                    one = found[way]
                    changed = (right != old[rows]) | (result[rows] != old[rows])
                    wrong = (right != result[rows]).nonzero(as_tuple=True)
                    one.changed += int(changed.sum())
                    one.equal += int(changed.sum()) - len(wrong[0])
                    if len(wrong[0]):
                        before, want, got = old[rows][wrong], right[wrong], result[rows][wrong]
                        one.cancelled += int(((place(want) - place(got)).abs() > 1).sum())
                        largest = torch.stack([before, want, got]).abs().amax(0)
                        apart = (want.double() - got.double()).abs() / step_at(largest)
                        one.farthest = max(one.farthest, float(apart.max()))
    return found


def rounded_once(exact: Any) -> Any:
    """float64 to bfloat16, ties to even. torch goes by way of float32, which rounds twice. Not for subnormal numbers."""
    import torch

    mantissa, exponent = torch.frexp(exact)
    return torch.ldexp(
        torch.round(mantissa * 256), exponent - 8
    ).bfloat16()  # 8 bits are significant; the rest is exact


def step_at(numbers: Any) -> Any:
    """The distance of neighbouring bfloat16 numbers."""
    import torch

    return torch.ldexp(torch.ones_like(numbers, dtype=torch.float64), torch.frexp(numbers.float())[1] - 8)


def place(numbers: Any) -> Any:
    """bfloat16 numbers counted from zero, so that neighbours are one apart."""
    import torch

    bits = numbers.view(torch.int16).int()
    return torch.where(bits < 0, -(bits & 0x7FFF), bits)


def tensors_of(folder: Path) -> dict[str, Path]:
    from safetensors import safe_open

    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            found |= dict.fromkeys(file.keys(), path)
    return found


if __name__ == "__main__":
    main()
