"""Our methods against mergekit's own merge functions on the same deltas, and the file of its results that the tests hold ours to.

    python benchmarks/mergekit_oracle.py [--python PATH] [--write]

mergekit is no dependency of ours and is never imported beside us: a Python that has it computes in a process of its own.
PATH names that Python; unless told, an environment with it is made once in the temporary folder, which downloads some hundred
megabytes. The inputs are seeded and lie on a grid on which `(base + delta) - base` is `delta` exactly, since mergekit takes full
weights and we take deltas. Options that a case leaves out are mergekit's defaults there and ours here, so these are compared too.

`--write` puts inputs, options and mergekit's results into tests/engine/oracles/mergekit.safetensors; the numbers are its,
the arithmetic that must meet them is ours.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import venv
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

VERSION = "0.1.5"
FILE = Path(__file__).parent.parent / "tests" / "engine" / "oracles" / "mergekit.safetensors"
TOLERANCE = 1e-6

MERGEKIT = {  # our name: mergekit's
    "linear": "task_arithmetic",
    "ties_mergekit": "ties",
    "dare_linear_mergekit": "dare_linear",
    "dare_ties_mergekit": "dare_ties",
    "breadcrumbs": "breadcrumbs",
    "breadcrumbs_ties": "breadcrumbs_ties",
    "della": "della",
    "della_linear": "della_linear",
    "sce": "sce",
    "slerp": "slerp",
}
THEIR_OPTION = {"scale": "lambda"}

# name: shape, adapters, grid of the deltas, grid of the base (0: a base of zeros)
INPUTS: dict[str, tuple[tuple[int, ...], int, float, float]] = {
    "matrix": ((12, 20), 2, 2**-14, 0),
    "on a base": ((12, 20), 2, 2**-14, 2**-18),
    "three": ((9, 7), 3, 2**-14, 0),
    "vector": ((33,), 2, 2**-14, 0),
    "experts": ((3, 4, 5), 2, 2**-14, 0),
    "small deltas": ((6, 11), 2, 2**-28, 0),
    "small deltas on a base": ((6, 11), 2, 2**-20, 2**-16),
}
HALVES, SIGNED, WHOLE = [0.5, 0.5], [0.7, -0.4], [1.0, 1.0]
THREE = [0.3, 0.2, 0.6]


def cases() -> list[dict[str, Any]]:
    """What is asked of mergekit: our method's name, inputs, weights, options (ours), seed of its global generator."""
    asked: list[tuple[str, str, list[float], dict[str, Any]]] = []
    pruning: dict[str, list[dict[str, Any]]] = {
        "linear": [{}],
        "ties_mergekit": [{"density": d} for d in (0.001, 0.3, 0.8, 1.0)],
        "dare_linear_mergekit": [{"density": d} for d in (0.3, 0.8, 1.0)],
        "dare_ties_mergekit": [{"density": d} for d in (0.3, 0.8, 1.0)],
        "breadcrumbs": [{"density": 0.5}, {"density": 0.3, "gamma": 0.1}, {"density": 0.9, "gamma": 0.4}],
        "breadcrumbs_ties": [{"density": 0.5}, {"density": 0.3, "gamma": 0.1}, {"density": 1.0}],
        "della": [{"density": 0.5}, {"density": 0.7, "epsilon": 0.29}, {"density": 1.0}],
        "della_linear": [{"density": 0.5}, {"density": 0.3, "epsilon": 0.0}],
    }
    for method, choices in pruning.items():
        for options in choices:
            asked += [(method, "matrix", weights, options) for weights in (HALVES, SIGNED)]
        first = choices[0] if "density" not in choices[0] else {"density": 0.4}
        asked += [(method, name, SIGNED, first) for name in ("on a base", "vector", "experts")]
        asked.append((method, "three", THREE, first))
        if method != "linear":
            flags = [(normalize, rescale) for normalize in (False, True) for rescale in (False, True)]
            asked += [(method, "three", THREE, first | {"normalize": n, "rescale": r}) for n, r in flags]
            asked.append((method, "matrix", SIGNED, first | {"scale": 1.5}))
    for share in ({}, {"select_topk": 0.4}, {"select_topk": 0.05}):
        names = ("matrix", "on a base", "vector", "experts", "small deltas")
        asked += [("sce", name, WHOLE, share) for name in names]
        asked.append(("sce", "three", [1.0, 1.0, 1.0], share))
    for t in (0.0, 0.3, 0.5, 1.0):
        names = ("matrix", "on a base", "vector", "experts", "small deltas on a base")
        asked += [("slerp", name, [1 - t, t], {}) for name in names]
    return [
        {"method": method, "inputs": name, "weights": weights, "options": options, "seed": 1000 + number}
        for number, (method, name, weights, options) in enumerate(asked)
    ]


def inputs() -> dict[str, Tensor]:
    """`NAME/base` and `NAME/delta/K` in float32. No two magnitudes in a delta are equal, so that which values are the largest is
    beyond doubt; a few values are zero, and the first few of two adapters cancel, which tells how signs of zero are elected."""
    made: dict[str, Tensor] = {}
    for number, (name, (shape, adapters, grid, base_grid)) in enumerate(INPUTS.items()):
        random = torch.Generator().manual_seed(number)
        count = torch.Size(shape).numel()

        def signs(n: int = count, random: torch.Generator = random) -> Tensor:
            return torch.randint(0, 2, (n,), generator=random) * 2 - 1

        deltas = []
        for adapter in range(adapters):
            steps = torch.randperm(2**14, generator=random)[:count] * 4 + adapter + 1
            deltas.append(steps * signs())
            deltas[-1][-3 - adapter : -1] = 0
        deltas[1][:4] = -deltas[0][:4]
        base = torch.randint(1, 2**20, (count,), generator=random) * signs()
        made[f"{name}/base"] = (base * base_grid).float().reshape(shape)
        made |= {f"{name}/delta/{k}": (delta * grid).float().reshape(shape) for k, delta in enumerate(deltas)}
    return made


def theirs(given: dict[str, Tensor], case: dict[str, Any]) -> Tensor:
    """mergekit's merged tensor (base included) for one case. Only a Python that has mergekit can run this."""
    from mergekit.merge_methods import registry  # pyright: ignore[reportMissingImports]
    from mergekit.merge_methods.base import MISSING, ParameterScope, TensorGroup  # pyright: ignore[reportMissingImports]
    from mergekit.merge_methods.slerp import slerp  # pyright: ignore[reportMissingImports]

    base = given[f"{case['inputs']}/base"]
    full = [base + given[f"{case['inputs']}/delta/{k}"] for k in range(len(case["weights"]))]
    if case["method"] == "slerp":
        return slerp(torch.tensor(case["weights"][1:]), full[0][None], full[1][None])[0]
    options = {THEIR_OPTION.get(name, name): value for name, value in case["options"].items()}
    method = registry.get(MERGEKIT[case["method"]])
    models = range(1, len(full) + 1)
    parameters: dict[str, Any] = {}
    for spec in method.spec.parameters:
        if spec.name == "weight":
            parameters["weight"] = dict(zip(models, case["weights"], strict=True))
            continue
        value = options.pop(spec.name, spec.default)
        assert value is not MISSING, spec.name
        parameters[spec.name] = dict.fromkeys(models, value) if spec.scope == ParameterScope.NON_BASE else value
    assert not options, f"mergekit's {method.spec.name} knows no {options}"
    torch.manual_seed(case["seed"])
    return method.merge_group(TensorGroup.from_tensors([base, *full], base_index=0), **parameters)


def ours(given: dict[str, Tensor], case: dict[str, Any]) -> Tensor:
    """Our combined delta for one case, its masks drawn by one generator in mergekit's order."""
    from reccocktail.engine.methods import METHODS, weighted_sum

    method = METHODS[case["method"]]
    base = given[f"{case['inputs']}/base"]
    weights = case["weights"]
    deltas = [given[f"{case['inputs']}/delta/{k}"] for k in range(len(weights))]
    if method.kind == "factors":
        return weighted_sum(deltas, weights)
    generator = torch.Generator().manual_seed(case["seed"])
    given_to_it = {"base": base, "deltas": deltas, "weights": weights, "generators": [generator] * len(deltas)}
    return method.function(*(given_to_it[name] for name in method.takes), **case["options"])


def size(given: dict[str, Tensor], case: dict[str, Any], expected: Tensor) -> Tensor:
    """What differences are relative to: the largest of what the last sum is of, since that may cancel."""
    base = given[f"{case['inputs']}/base"].double()
    if case["method"] != "slerp":
        return torch.maximum(expected.abs(), base.abs())
    return torch.maximum(*((base + given[f"{case['inputs']}/delta/{k}"]).abs() for k in range(2)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", type=Path, help=f"a Python that has mergekit {VERSION}")
    parser.add_argument("--write", action="store_true", help=f"write {FILE.name} for the tests")
    parser.add_argument("--answer", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.answer:
        answer(options.answer)
        return
    with tempfile.TemporaryDirectory(prefix="reccocktail-oracle-") as folder:
        place = Path(folder) / FILE.name
        python = options.python or made_python()
        subprocess.run([python, __file__, "--answer", place], check=True)
        with safe_open(place, "pt") as file:
            about = json.loads(file.metadata()["oracle"])
            stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        worst: dict[str, list[float]] = {}
        for number, case in enumerate(about["cases"]):
            expected = stored[f"case/{number}"].double()
            got = stored[f"{case['inputs']}/base"].double() + ours(stored, case).double()
            error = (got - expected).abs() / size(stored, case, expected)
            worst.setdefault(case["method"], []).append(float(error.where(got != expected, 0.0).max()))
        print(f"mergekit {about['mergekit']} (torch {about['torch']}), ours (torch {torch.__version__})")
        for name, errors in worst.items():
            print(f"{name:22} {len(errors):3} cases   largest relative difference {max(errors):.1e}")
        if options.write:
            FILE.parent.mkdir(exist_ok=True)
            FILE.write_bytes(place.read_bytes())
            print(f"wrote {FILE} ({FILE.stat().st_size:,} bytes)")
        elif FILE.read_bytes() != place.read_bytes():
            print(f"{FILE.name} holds other results; --write replaces it")
    if max(map(max, worst.values())) > TOLERANCE:
        sys.exit(f"some differ by more than {TOLERANCE:g}")


def answer(place: Path) -> None:
    """The part that runs where mergekit is: inputs, mergekit's results and what they are of, as one safetensors file."""
    if (found := version("mergekit")) != VERSION:
        sys.exit(f"this Python has mergekit {found}, not {VERSION}")
    torch.set_num_threads(1)
    given = inputs()
    asked = cases()
    results = {f"case/{number}": theirs(given, case).contiguous() for number, case in enumerate(asked)}
    about = {"mergekit": found, "torch": torch.__version__, "cases": asked}
    save_file(given | results, place, metadata={"oracle": json.dumps(about)})


def made_python() -> Path:
    """The Python of an environment with mergekit, made on the first call."""
    folder = Path(tempfile.gettempdir()) / f"reccocktail-mergekit-{VERSION}"
    python = folder / "bin" / "python"
    if not (folder / "complete").exists():
        print(f"installing mergekit {VERSION} into {folder}", file=sys.stderr)
        venv.create(folder, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", f"mergekit=={VERSION}"], check=True)
        (folder / "complete").touch()
    return python


if __name__ == "__main__":
    main()
