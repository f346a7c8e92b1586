"""How far merged checkpoints are from what PEFT computes: architectures by adapter kinds, on small random models.

    python benchmarks/equality.py [--architecture NAME]… [--kind KIND]… [--tied | --untied] [--dtype D] [--shard 20KB] [--json]

A cell is the largest difference of logits between our float32 merge, loaded by transformers, and PEFT, as a share of the largest
logit, for one adapter and for two mixed 0.6 and 0.7; `n/a` where there is no such adapter, with the reason below; FAIL with the
difference or the error below. What PEFT is asked in each case stands in `tests/engine/architectures.py`; the same matrix is a test,
`tests/engine/test_equality.py`. Takes a minute. Exits with 1 if a cell fails.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import tempfile
import warnings
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import track
from rich.table import Table

CATALOGUE = Path(__file__).parents[1] / "tests" / "engine" / "architectures.py"


@dataclass(frozen=True)
class Outcome:
    """One cell: `difference` and `effect` are shares of the largest logit; `missing` says why there is nothing to measure."""

    architecture: str
    kind: str
    difference: float | None = None
    effect: float | None = None
    missing: str | None = None
    failure: str | None = None

    @property
    def text(self) -> str:
        if self.missing:
            return "n/a"
        return "FAIL" if self.failure else f"{self.difference:.0e}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", action="append", metavar="NAME", help="only this one; may be repeated")
    parser.add_argument("--kind", action="append", help="only this kind of adapter; may be repeated")
    ties = parser.add_mutually_exclusive_group()
    ties.add_argument("--tied", action="store_true", help="heads tied to the embedding, where that exists")
    ties.add_argument("--untied", action="store_true", help="heads of their own, where they exist")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="of the base")
    parser.add_argument("--shard", default="1GB", help="largest file of the base")
    parser.add_argument("--json", action="store_true", help="one document instead of the table")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # PEFT's, about the adapters that are tried out here
    module = catalogue_module()
    for given, known in ((options.architecture, module.ARCHITECTURES), (options.kind, module.KINDS)):
        for name in given or ():
            if name not in known:
                parser.error(f"{name!r} is none of: {', '.join(known)}")
    names, kinds = options.architecture or list(module.ARCHITECTURES), options.kind or list(module.KINDS)
    tied = True if options.tied else False if options.untied else None
    if tied is not None:
        names = [n for n in names if module.ARCHITECTURES[n].both or module.ARCHITECTURES[n].tied is tied]
    how = {"tied": tied, "dtype": options.dtype, "shard": options.shard}
    with tempfile.TemporaryDirectory() as folder:
        catalogue = module.Catalogue(Path(folder))
        cells = [(name, kind) for name in names for kind in kinds]
        console = Console(stderr=True)
        steps = track(cells, "merging", console=console, transient=True, disable=not console.is_terminal)
        found = [outcome(module, catalogue, name, kind, Path(folder), how) for name, kind in steps]
    if options.json:
        print(json.dumps({"tolerance": module.TOLERANCE, **how, "cells": [asdict(cell) for cell in found]}, indent=2))
    else:
        show(found, names, kinds, module.TOLERANCE)
    sys.exit(any(cell.failure for cell in found))


def catalogue_module() -> ModuleType:
    """The tests' module, which lies on no search path."""
    spec = importlib.util.spec_from_file_location("reccocktail_tests_architectures", CATALOGUE)
    assert spec
    assert spec.loader
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def outcome(module: Any, catalogue: Any, name: str, kind: str, folder: Path, how: dict[str, Any]) -> Outcome:
    missing = module.ARCHITECTURES[name].why_not(kind)
    if missing:
        return Outcome(name, kind, missing=missing)
    out = folder / f"{name}-{kind}".replace(" ", "-")
    out.mkdir()
    try:
        cell = catalogue.measure(name, kind, out, **how)
    except Exception as error:  # noqa: BLE001  whatever happens in a cell is what the table is there to tell
        return Outcome(name, kind, failure=f"{type(error).__name__}: {str(error).replace(f'{folder}/', '')}")
    failure = None
    if not cell.holds:
        failure = f"{cell.one:.1e} with one adapter, {cell.two:.1e} with two; the adapters change {cell.effect:.1e}"
    return Outcome(name, kind, cell.worst, cell.effect, failure=failure)


def show(found: list[Outcome], names: list[str], kinds: list[str], tolerance: float) -> None:
    table = Table("", *(kind.replace(" ", "\n") for kind in kinds), box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    by_cell = {(cell.architecture, cell.kind): cell for cell in found}
    for name in names:
        table.add_row(name, *(by_cell[name, kind].text for kind in kinds))
    Console(width=20 + 12 * len(kinds)).print(table)  # never folded, however wide the terminal is
    measured = [cell for cell in found if cell.difference is not None]
    failed = [cell for cell in found if cell.failure]
    print(f"{len(found) - len([c for c in found if c.missing])} cells, {len(failed)} failed (limit: {tolerance:.0e})")
    if measured:
        worst = max(measured, key=lambda cell: cell.difference or 0.0)
        weakest = min(measured, key=lambda cell: cell.effect or 0.0)
        print(f"largest difference {worst.difference:.1e} ({worst.architecture}, {worst.kind})")
        print(
            f"the adapters change the logits by at least {weakest.effect:.2f} ({weakest.architecture}, {weakest.kind})"
        )
    reasons: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for cell in found:
        if cell.missing:
            reasons[cell.missing][cell.kind].append(cell.architecture)
    for reason, by_kind in reasons.items():
        print(f"n/a, {reason}:")
        for kind, architectures in by_kind.items():
            print(f"  {kind}: {', '.join(architectures)}")
    for cell in failed:
        print(f"FAIL {cell.architecture}, {cell.kind}: {cell.failure}")


if __name__ == "__main__":
    main()
