"""What it costs to bring many domains and adapters into an empty registry by one file: `reccocktail apply`, the whole command.

    python benchmarks/applying.py [--count 50] [--rank 16] [--folder DIR] [--single 2]

Each domain has an adapter on all linear layers of a model of SmolLM2-135M's shape, an alias, and a sample data set. Then: the
same file again (nothing changes), again without the digests known (as a person writes it), a dry run, `export`, and, to compare,
some domains and adapters by one command each. The limit: 10 s for 50 domains and 50 adapters on two cores.
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

import numpy as np
from reccocktail.tasks import generate, write_domain
from safetensors.numpy import save_file

LAYERS, HIDDEN, FEED, KEYS = 30, 576, 1536, 192
SHAPES = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (KEYS, HIDDEN),
    "self_attn.v_proj": (KEYS, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (FEED, HIDDEN),
    "mlp.up_proj": (FEED, HIDDEN),
    "mlp.down_proj": (HIDDEN, FEED),
}
LIMIT = 10.0  # seconds, for 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=50, help="domains, each with one adapter")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--single", type=int, default=2, help="domains and adapters added by single commands")
    parser.add_argument("--folder", type=Path, help="where to write: the disk to be measured")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="reccocktail-bench-", dir=options.folder) as name:
        place = Path(name)
        make_base(place / "base")
        for number in range(options.count):
            make_adapter(place / f"lora-{number}", options.rank, number)
        write_domain(generate("kitchen", users=200), place / "data")
        (place / "registry.yaml").write_text(declared(options.count))
        reached = measure(place, options.count, options.single)
    sys.exit(not reached)


def measure(place: Path, count: int, single: int) -> bool:
    size = sum(file.stat().st_size for file in (place / "lora-0").iterdir())
    print(f"{count} domains and {count} adapters of {size / 1e6:.1f} MB, the whole command")
    run(place, "init")
    run(place, "base", "add", "base", str(place / "base"))
    file = str(place / "registry.yaml")
    dry = report("apply --dry-run, empty registry", run(place, "apply", "-f", file, "--dry-run"))
    assert dry > 0
    taken = report("apply, empty registry", run(place, "apply", "-f", file))
    report("apply again", run(place, "apply", "-f", file))
    report("export --json", run(place, "export", "--json", out=place / "registry.json"))
    run(place, "init", home="copy")
    report("apply of the export, empty registry", run(place, "apply", "-f", str(place / "registry.json"), home="copy"))
    report("apply of the export again", run(place, "apply", "-f", str(place / "registry.json"), home="copy"))
    run(place, "init", home="single")
    run(place, "base", "add", "base", str(place / "base"), home="single")
    started = time.perf_counter()
    for number in range(single):
        domain = f"shop-{number}"
        run(place, "domain", "add", domain, "--title", f"Shop {number}", "--data", str(place / "data"), home="single")
        run(place, "adapter", "add", str(place / f"lora-{number}"), "--base", "base", "--domain", domain, home="single")
        run(place, "adapter", "alias", f"{domain}@v1", "champion", home="single")
    if single:
        each = (time.perf_counter() - started) / single
        report(f"by single commands, of {single}", each * count)
    allowed = LIMIT * count / 50
    print(f"at most {allowed:g} s:", "reached" if taken <= allowed else "NOT REACHED")
    return taken <= allowed


def report(what: str, seconds: float) -> float:
    print(f"{what:38} {seconds:8.2f} s")
    return seconds


def run(place: Path, *words: str, home: str = "home", out: Path | None = None) -> float:
    """The seconds that the command takes."""
    command = [str(Path(sys.executable).with_name("reccocktail")), "--home", str(place / home), *words]
    started = time.perf_counter()
    done = subprocess.run(command, check=True, capture_output=True, env=os.environ | {"HOME": str(place)})
    taken = time.perf_counter() - started
    if out is not None:
        out.write_bytes(done.stdout)
    return taken


def declared(count: int) -> str:
    domains = "".join(f"  shop-{n}: {{title: Shop {n}, data: ./data}}\n" for n in range(count))
    adapters = "".join(
        f"  - {{source: ./lora-{n}, base: base, domain: shop-{n}, aliases: [champion], metrics: {{HR@1: 0.4}}}}\n"
        for n in range(count)
    )
    return f"domains:\n{domains}adapters:\n{adapters}"


def make_base(folder: Path) -> None:
    folder.mkdir()
    weights = {f"model.layers.{n}.{name}.weight": np.zeros(shape, "f2") for n in range(LAYERS) for name, shape in SHAPES.items()}  # fmt: skip
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))


def make_adapter(folder: Path, rank: int, seed: int) -> None:
    folder.mkdir()
    drawn = np.random.default_rng(seed)
    factors = {}
    for layer in range(LAYERS):
        for name, (rows, columns) in SHAPES.items():
            stem = f"base_model.model.model.layers.{layer}.{name}"
            factors[f"{stem}.lora_A.weight"] = drawn.random((rank, columns), "f4")
            factors[f"{stem}.lora_B.weight"] = drawn.random((rows, rank), "f4")
    save_file(factors, folder / "adapter_model.safetensors")
    targets = sorted({name.partition(".")[2] for name in SHAPES})
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": targets}
    (folder / "adapter_config.json").write_text(json.dumps(config))


if __name__ == "__main__":
    main()
