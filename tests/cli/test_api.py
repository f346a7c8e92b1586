"""The Python API: the three uses in ten lines, the same rows as the command's, and nothing heavy at import."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from reccocktail import api
from safetensors import safe_open

ROOT = Path(__file__).parents[2]
REPO = "acme/skin-care"


def test_register_build_evaluate_and_publish(
    bare: Any, tiny_base: Path, loras: dict[str, Path], data: Path, small_recipe: Path, loopback_hub: Any
) -> None:
    with api.open_registry(bare.home, actor="anna", create=True) as registry:
        assert registry.add_base("tiny", tiny_base) == "tiny"
        assert registry.add_domain("skin-care", data=data / "skin-care", recipe=str(small_recipe)) == "skin-care"
        registry.register_adapter(loras["spirit"], base="tiny")
        added = registry.register_adapter(
            loras["ingredient"], base="tiny", domain="skin-care", metrics={"HR@1": 0.4}, tags=["spring"]
        )
        registry.set_alias("skin-care@v1", "champion")
        assert registry.resolve("skin-care@champion").digest == added.digest
        assert (registry.adapter_folder(added) / "adapter_model.safetensors").is_file()

        build = registry.wait(registry.request_build("skin-care", recipe="average"))
        assert build.status == "succeeded"
        assert registry.request_build("skin-care", recipe="average").id == build.id
        with safe_open(registry.build_folder(build) / "model.safetensors", framework="pt") as weights:
            assert len(list(weights.keys())) > 10

        own = registry.wait(registry.request_build("skin-care"))
        popularity, merged = registry.evaluate("skin-care", ["popularity", own.id], limit=5)
        assert (len(popularity.ranks), len(merged.ranks)) == (5, 5)
        published = registry.publish("skin-care", REPO, license_id="apache-2.0")
        assert published.repo == REPO
        assert re.fullmatch("[0-9a-f]{40}", published.revision)
        assert "model.safetensors" in loopback_hub.files(REPO)

    rows = bare("build", "list", "--json").json
    assert {row["id"] for row in rows} == {build.id, own.id}
    assert {event["created_by"] for event in bare("adapter", "log", "skin-care", "--json").json} == {"anna"}


def test_errors_are_those_that_are_listed(prepared: Any) -> None:
    with api.open_registry(prepared.home) as registry:
        with pytest.raises(api.NotFoundError):
            registry.resolve("nowhere")
        with pytest.raises(api.RecCocktailError):
            registry.request_build("skin-care", recipe="no-such-recipe")
    with pytest.raises(api.RecCocktailError):
        api.open_registry(prepared.home / "elsewhere")


def test_importing_it_is_light() -> None:
    script = "import sys, reccocktail.api; print({'torch', 'sqlalchemy', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def public(of: type) -> dict[str, Callable[..., Any]]:
    return {name: each for name, each in inspect.getmembers(of, inspect.isfunction) if not name.startswith("_")}


def test_all_that_is_public_is_typed_and_on_its_page() -> None:
    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^\| `(\w+)\(", page, re.MULTILINE))
    assert listed == {"open_registry", *public(api.Client)}
    for function in (api.open_registry, *public(api.Client).values()):
        assert function.__doc__
        signature = inspect.signature(function)
        assert signature.return_annotation is not inspect.Signature.empty
        assert all(p.annotation is not p.empty for name, p in signature.parameters.items() if name != "self")
