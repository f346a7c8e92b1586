"""Names for serving engines: which version, where, and nothing that would be served as something else."""

from __future__ import annotations

import asyncio
import importlib
import itertools
import json
import logging
import shlex
import shutil
import subprocess
import sys
import threading
import tomllib
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from reccocktail.engine.building.completion import complete
from reccocktail.engine.building.planning import request
from reccocktail.engine.recipes import Output, Recipe
from reccocktail.registry import Build, Registry
from reccocktail.registry.catalog.registration import Checks
from reccocktail.registry.errors import (
    BaseMismatchError,
    ConflictError,
    NotFoundError,
    RecCocktailError,
    StoreError,
    UnsupportedAdapterError,
    UsageError,
)
from reccocktail.serving import resolve as serving
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    return in_thread(asyncio.run, coroutine)


def in_thread(function: Callable[..., Any], *given: Any) -> Any:
    """Of its own: a browser that other tests drive keeps a loop running in the main one."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function, *given).result()


@pytest.fixture
def copied_base(base: Path, tmp_path: Path) -> Path:
    """The folder of `tiny` once more, for a test to change."""
    return shutil.copytree(base, tmp_path / "copied")


def test_a_name_leads_to_the_bytes_that_were_registered(stocked: Registry, base, make_adapter) -> None:
    found = serving.find(stocked, "skin-care")
    assert (found.origin.ref, found.rank) == ("skin-care@v1", 4)
    name = "adapter_model.safetensors"
    assert (found.folder / name).read_bytes() == (make_adapter(base, 2) / name).read_bytes()


def test_an_alias_is_what_it_means_now(stocked: Registry, base, make_adapter) -> None:
    tiny = stocked.bases.get("tiny")
    stocked.adapters.add(make_adapter(base, 3), base=tiny, role="ingredient", domain="skin-care")
    stocked.adapters.alias("skin-care@v1", "champion")
    before = serving.find(stocked, "skin-care@champion", base="tiny")
    stocked.adapters.alias("skin-care@v2", "champion")
    after = serving.find(stocked, "skin-care@champion", base="tiny")
    assert [found.origin.ref for found in (before, after)] == ["skin-care@v1", "skin-care@v2"]
    assert before.folder != after.folder


def test_an_archived_version_is_not_served(stocked: Registry) -> None:
    stocked.adapters.archive("skin-care@v1", force=True)
    with pytest.raises(ConflictError, match="skin-care@v1 is archived") as error:
        serving.find(stocked, "skin-care@v1")
    assert "--undo" in str(error.value.hint)


def test_an_adapter_of_another_base_is_refused_by_both_names(stocked: Registry, make_base) -> None:
    stocked.bases.add("other", make_base(seed=7), source="elsewhere")
    with pytest.raises(BaseMismatchError, match="skin-care was made for the base model 'tiny', not for 'other'"):
        serving.find(stocked, "skin-care", base="other")


def test_what_nobody_has_is_not_found(stocked: Registry) -> None:
    for ref in ("skin-care@absent", "skin-care@v9", "nothing"):
        with pytest.raises(NotFoundError):
            serving.find(stocked, ref, base="tiny")


def test_an_adapter_that_cannot_be_read_any_more_is_the_stores_trouble(
    stocked: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    def newer(folder: Path, *_: Any, **__: Any) -> None:
        raise UnsupportedAdapterError(f"{folder}: tensor 'x' has a name from a newer version")

    monkeypatch.setattr(serving, "inspect_adapter", newer)
    with pytest.raises(StoreError, match=r"skin-care@v1 cannot be read as it was registered: .*from a newer version"):
        serving.find(stocked, "skin-care")


LORA = Recipe(coefficients={"spirit": 0.5, "ingredient": 0.5}, output={"format": "adapter"})


def build_of(registry: Registry, recipe: Recipe) -> Build:
    asked = request(registry, "skin-care", recipe).build
    return complete(registry, asked, device="cpu")


def test_an_alias_of_builds_means_the_adapter_that_was_built_unless_an_adapter_has_it(
    stocked: Registry, make_base
) -> None:
    built, whole = build_of(stocked, LORA), build_of(stocked, LORA.model_copy(update={"output": Output()}))
    stocked.serving.promote(built.id)
    found = serving.find(stocked, "skin-care@production", base="tiny")
    assert (found.origin.build, found.origin.digest) == (built.id, built.digest)
    assert (found.folder, found.rank) == (built.path, 8)
    module, _ = serving.vllm_command(stocked, found, "skin-care@production")
    assert module["path"] == str(built.path)
    stocked.bases.add("other", make_base(seed=7), source="elsewhere")
    with pytest.raises(BaseMismatchError):
        serving.find(stocked, "skin-care@production", base="other")

    stocked.serving.promote(whole.id)
    with pytest.raises(ConflictError, match="skin-care@production --merged"):
        serving.find(stocked, "skin-care@production")
    stocked.adapters.alias("skin-care@v1", "production")
    assert serving.find(stocked, "skin-care@production").origin.ref == "skin-care@v1"


# --- which base model a server serves --------------------------------------------------------------------------------


def test_the_stored_base_and_a_copy_of_it_are_the_base(stocked: Registry, copied_base: Path) -> None:
    (copied_base / "generation_config.json").unlink(missing_ok=True)
    (copied_base / "notes.txt").write_text("of no account")
    for folder in (stocked.bases.folder(stocked.bases.get("tiny")), copied_base):
        assert serving.served_base(stocked, str(folder), None).name == "tiny"
        assert serving.served_base(stocked, str(folder), None, "tiny").name == "tiny"


def _other_value(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][0] += 1
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _other_setting(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.5}))


def _more_weights(folder: Path) -> None:
    save_file({"x": torch.ones(1)}, folder / "more.safetensors")


def _an_index(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text("{}")


def _no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (_other_value, "the content of model.safetensors"),
        (_other_setting, "config.json"),
        (_more_weights, "more.safetensors, which the base does not have"),
        (_an_index, "model.safetensors.index.json, which the base does not have"),
        (_no_weights, "model.safetensors, which is not there"),
    ],
)
@pytest.mark.parametrize("named", [None, "tiny"])
def test_a_folder_that_differs_is_not_the_base_whatever_is_said(
    stocked: Registry, copied_base: Path, change: Callable[[Path], None], what: str, named: str | None
) -> None:
    change(copied_base)
    with pytest.raises(BaseMismatchError, match=f"is not a base model of the registry: it differs from tiny in {what}"):
        serving.served_base(stocked, str(copied_base), None, named)


def test_a_hub_repo_is_the_base_at_its_commit_or_at_somebodys_word(stocked: Registry, make_base) -> None:
    stocked.bases.add("hubs", make_base(seed=7), source="acme/model", revision=COMMIT)
    assert serving.served_base(stocked, "acme/model", COMMIT).name == "hubs"
    for model, revision in (("acme/model", None), ("acme/model", "main"), ("acme/other", COMMIT)):
        with pytest.raises(BaseMismatchError, match="could not be identified") as error:
            serving.served_base(stocked, model, revision)
        assert "RECCOCKTAIL_SERVE_BASE" in str(error.value.hint)
        assert (f"--revision {COMMIT}" in str(error.value.hint)) == (model == "acme/model")
        assert serving.served_base(stocked, model, revision, "hubs").name == "hubs"


def test_of_two_names_for_the_same_bytes_one_has_to_be_said(stocked: Registry, base: Path) -> None:
    stocked.bases.add("again", base, source="elsewhere")
    with pytest.raises(UsageError, match="several base models: again, tiny"):
        serving.served_base(stocked, str(base), None)
    assert serving.served_base(stocked, str(base), None, "again").name == "again"


def test_without_any_base_none_is_served(registry: Registry, base: Path) -> None:
    with pytest.raises(NotFoundError, match="no base model yet"):
        serving.served_base(registry, str(base), None)
    with pytest.raises(NotFoundError, match="no base model 'absent'"):
        serving.served_base(registry, str(base), None, "absent")


@pytest.mark.parametrize("name", ["skin-care", "skin-care@champion", "skin-care@v3", "spirit", "spirit@v1"])
def test_the_base_is_not_served_under_a_name_of_adapters(stocked: Registry, name: str) -> None:
    with pytest.raises(ConflictError, match=f"served as '{name}', which is the name of adapters"):
        serving.refuse_taken_names(stocked, ["tiny", name])
    serving.refuse_taken_names(stocked, ["tiny", "/models/tiny", "acme/model", "Skin-Care", "kitchen"])


# --- what vLLM does with an adapter ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"use_dora": True}, "it is DoRA"),
        ({"lora_bias": True, "target_modules": ["c_attn"]}, "it has biases"),
        ({"bias": "lora_only", "target_modules": ["c_attn"]}, "it has biases"),
        ({"modules_to_save": ["lm_head"]}, "it holds lm_head.weight as trained"),
        ({"trainable_token_indices": [3, 5]}, "it holds model.embed_tokens.weight as trained"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, "it adapts model.embed_tokens.weight, an embedding or head"),
        ({"target_modules": ["q_proj", "lm_head"]}, "it adapts lm_head.weight, an embedding or head"),
        ({"r": 2, "rank_pattern": {"q_proj": 600}}, "its rank is 600"),
    ],
)
def test_what_vllm_cannot_serve_is_refused_with_the_reason(
    stocked: Registry, make_base, make_adapter, options: dict[str, Any], reason: str
) -> None:
    gpt2 = "c_attn" in options.get("target_modules", ())
    folder = make_base("gpt2") if gpt2 else make_base()
    row = stocked.bases.add("gpt2", folder, source=str(folder)) if gpt2 else stocked.bases.get("tiny")
    stocked.domains.add("kitchen")
    stocked.adapters.add(make_adapter(folder, 5, **options), base=row, role="ingredient", domain="kitchen")
    found = serving.find(stocked, "kitchen")
    with pytest.raises(UnsupportedAdapterError, match="kitchen@v1 cannot be served as a LoRA by vLLM: ") as error:
        serving.vllm_command(stocked, found, "kitchen")
    assert reason in str(error.value)
    assert "--merged" in str(error.value.hint)


@pytest.mark.parametrize(("ranks", "limit"), [({"r": 4}, "8"), ({"r": 2, "rank_pattern": {"v_proj": 9}}, "16")])
def test_the_command_serves_base_and_adapter_with_room_for_its_rank(
    stocked: Registry, base, make_adapter, ranks: dict[str, Any], limit: str
) -> None:
    stocked.domains.add("kitchen")
    tiny = stocked.bases.get("tiny")
    stocked.adapters.add(make_adapter(base, 5, **ranks), base=tiny, role="ingredient", domain="kitchen")
    found = serving.find(stocked, "kitchen@v1")
    module, command = serving.vllm_command(stocked, found, "kitchen@v1")
    assert module == {"name": "kitchen@v1", "path": str(found.folder), "base_model_name": "tiny"}
    assert command[:3] == ["vllm", "serve", str(stocked.bases.folder(tiny))]
    assert command[3:8] == ["--served-model-name", "tiny", "--enable-lora", "--max-lora-rank", limit]
    assert json.loads(shlex.split(shlex.join(command))[-1]) == module


def test_a_base_with_a_domains_name_is_served_under_its_path(stocked: Registry) -> None:
    stocked.domains.add("tiny")
    module, command = serving.vllm_command(stocked, serving.find(stocked, "spirit"), "spirit")
    assert "--served-model-name" not in command
    assert module["base_model_name"] == command[2]


def test_peft_loads_the_written_folder_with_its_base_and_answers_as_before(
    stocked: Registry, base, make_adapter, tmp_path: Path
) -> None:
    target = tmp_path / "for-peft"
    serving.write_for_peft(stocked, serving.find(stocked, "skin-care"), target)
    loaded = AutoPeftModelForCausalLM.from_pretrained(target)
    before = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), make_adapter(base, 2))
    tokens = torch.arange(12).unsqueeze(0)
    with torch.no_grad():
        torch.testing.assert_close(loaded(tokens).logits, before(tokens).logits, rtol=0, atol=0)
    assert [path.name for path in tmp_path.glob(".*")] == []


def test_the_folder_for_peft_is_made_whole_and_takes_nobodys_place(
    stocked: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, target = serving.find(stocked, "skin-care"), tmp_path / "mine"
    theirs = tmp_path / ".mine.part" / "notes"
    theirs.parent.mkdir()
    theirs.write_text("of somebody who has a folder of that name")
    real, names = serving.copy_folder, set[str]()

    def copytree(source: Path, folder: Path) -> None:
        names.add(folder.name)
        assert not target.exists()
        real(source, folder)

    monkeypatch.setattr(serving, "copy_folder", copytree)
    serving.write_for_peft(stocked, found, target)
    before = sorted(path.read_bytes() for path in target.iterdir())
    target.rename(away := tmp_path / "away")
    monkeypatch.setattr(serving, "copy_folder", lambda *given: (copytree(*given), away.rename(target)))
    with pytest.raises(ConflictError, match="mine was created by another process meanwhile"):
        serving.write_for_peft(stocked, found, target)
    assert len(names) == 2  # nobody is in the other's way
    assert sorted(path.read_bytes() for path in target.iterdir()) == before
    assert theirs.exists()
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == [".mine.part"]


# --- the plugin, as far as it can be seen without vLLM; `make serve-check` sees the rest -----------------------------


def test_nothing_but_vllm_imports_its_plugin() -> None:
    code = (
        "import sys, reccocktail.cli.commands, reccocktail.serving.resolve, reccocktail.engine.building.planning\n"
        "print([name for name in sys.modules if 'vllm' in name])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The plugin's module over a stand-in with the names and signatures of vLLM 0.32 that it uses."""

    class LoRAResolver:
        pass

    class Struct(type):
        """As msgspec's: a class lets its objects be watched where it says so."""

        def __new__(cls, name: str, bases: tuple[type, ...], body: dict[str, Any], *, weakref: bool = False) -> Struct:
            return super().__new__(cls, name, bases, body | {"__slots__": ("__weakref__",) if weakref else ()})

    class LoRARequest(SimpleNamespace, metaclass=Struct):
        def __eq__(self, other: object) -> bool:
            return isinstance(other, type(self)) and self.lora_name == other.lora_name

        def __hash__(self) -> int:
            return hash(self.lora_name)

    class GracefulHTTPError(Exception):
        def __init__(self, message: str, http_status: int) -> None:
            super().__init__(message)
            self.http_status = http_status

    class PEFTHelper:
        @classmethod
        def from_local_dir(cls, lora_path: str, max_position_embeddings: int | None) -> PEFTHelper:
            helper = cls()
            helper.rank = json.loads((Path(lora_path) / "adapter_config.json").read_text())["r"]
            return helper

        def validate_legal(self, lora_config: Any) -> None:
            if self.rank > lora_config.max_lora_rank:
                raise ValueError(f"LoRA rank {self.rank} is greater than max_lora_rank {lora_config.max_lora_rank}.")

    entered: dict[str, object] = {}
    contents: dict[str, dict[str, object]] = {
        "vllm": {},
        "vllm.envs": {"VLLM_SKIP_MODEL_NAME_VALIDATION": False, "VLLM_ALLOW_RUNTIME_LORA_UPDATING": True},
        "vllm.entrypoints.serve.lora.protocol": {"UnloadLoRAAdapterRequest": SimpleNamespace},
        "vllm.exceptions": {"GracefulHTTPError": GracefulHTTPError},
        "vllm.logger": {"init_logger": logging.getLogger},
        "vllm.lora.peft_helper": {"PEFTHelper": PEFTHelper},
        "vllm.lora.request": {"LoRARequest": LoRARequest},
        "vllm.lora.resolver": {
            "LoRAResolver": LoRAResolver,
            "LoRAResolverRegistry": SimpleNamespace(register_resolver=entered.__setitem__, entered=entered),
        },
    }
    for name, values in contents.items():
        module = ModuleType(name)
        vars(module).update(values)
        monkeypatch.setitem(sys.modules, name, module)
    vars(sys.modules["vllm"])["envs"] = sys.modules["vllm.envs"]
    monkeypatch.delitem(sys.modules, "reccocktail.serving.vllm_plugin", raising=False)
    module = importlib.import_module("reccocktail.serving.vllm_plugin")
    monkeypatch.delitem(sys.modules, "reccocktail.serving.vllm_plugin")
    return module


def test_the_entry_points_name_what_is_there(plugin: ModuleType) -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    for group, kind in (("vllm.general_plugins", "register"), ("vllm.endpoint_plugins", "Introduction")):
        module, _, name = project["entry-points"][group]["reccocktail"].partition(":")
        assert (module, name) == (plugin.__name__, kind)
    plugin.register()
    assert plugin.LoRAResolverRegistry.entered == {"reccocktail": plugin.RESOLVER}
    assert plugin.Introduction().name == "reccocktail"


def test_a_resolver_that_was_told_nothing_knows_no_name(plugin: ModuleType) -> None:
    assert run(plugin.RESOLVER.resolve_lora("/models/tiny", "skin-care")) is None


def test_names_become_adapters_or_errors_to_the_client(
    plugin: ModuleType, stocked: Registry, base, make_adapter
) -> None:
    tiny, resolver = stocked.bases.get("tiny"), plugin.RESOLVER
    uneven = {"rank_pattern": {"v_proj": 2}}
    for name, options in (("dora", {"use_dora": True}), ("wide", {"r": 16}), ("uneven", uneven)):
        stocked.domains.add(name)
        stocked.adapters.add(make_adapter(base, 5, **options), base=tiny, role="ingredient", domain=name)
    resolver.introduce(stocked, tiny, SimpleNamespace(max_lora_rank=8))

    def ask(name: str) -> Any:
        return run(resolver.resolve_lora("/models/tiny", name))

    found = ask("skin-care@v1")
    assert (found.lora_name, found.base_model_name) == ("skin-care@v1", "tiny")
    assert (ask("skin-care").lora_name, ask("spirit").lora_name) == ("skin-care=v1", "spirit=v1")
    assert found.lora_path == str(serving.find(stocked, "skin-care").folder)
    assert [ask(name) for name in ("gpt-4", "acme/model", "Skin-Care", "")] == [
        None
    ] * 4  # another resolver's, or nobody's
    for name, status, part in (
        ("skin-care@absent", 404, "there is no 'skin-care@absent'"),
        ("dora", 400, "it is DoRA"),
        ("wide", 400, "LoRA rank 16 is greater than max_lora_rank 8"),
        ("uneven", 400, "uneven@v1 cannot be served: this vLLM gives all of its modules one scale"),
    ):
        with pytest.raises(plugin.GracefulHTTPError, match=part) as error:
            ask(name)
        assert error.value.http_status == status
    plugin.PEFTHelper.rank_pattern = None  # as that of vLLM 0.32 has one
    assert ask("uneven").lora_name == "uneven=v1"


def test_a_server_answers_with_the_build_of_an_alias_and_follows_it(
    plugin: ModuleType, stocked: Registry, statements: list[str]
) -> None:
    built, whole = build_of(stocked, LORA), build_of(stocked, LORA.model_copy(update={"output": Output()}))
    resolver, name = plugin.RESOLVER, "skin-care@production"
    resolver.introduce(stocked, stocked.bases.get("tiny"), SimpleNamespace(max_lora_rank=8))

    def ask(name: str) -> Any:
        return run(resolver.resolve_lora("/models/tiny", name))

    stocked.serving.promote(built.id)
    stocked.serving.alias(built.id, "shadow")
    found = ask(name)
    assert (found.lora_name, found.lora_path) == (f"{name}={built.id}", str(built.path))
    ask("skin-care")
    ask("skin-care@shadow")
    statements.clear()
    assert run(resolver.moved()) == []
    assert len([statement for statement in statements if "SELECT" in statement]) == 2

    stocked.serving.promote(whole.id)
    assert run(resolver.moved()) == [name]
    with pytest.raises(plugin.GracefulHTTPError, match="--merged") as error:
        ask(name)
    assert error.value.http_status == 400
    stocked.adapters.alias("skin-care@v1", "shadow")  # from now on the name is the adapter's
    assert run(resolver.moved()) == [name, "skin-care@shadow"]
    assert ask("skin-care@shadow").lora_name == "skin-care@shadow=v1"


def test_troubles_of_the_registry_are_told_without_their_details(
    plugin: ModuleType, stocked: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin.RESOLVER.introduce(stocked, stocked.bases.get("tiny"), SimpleNamespace(max_lora_rank=8))
    shutil.rmtree(stocked.settings.home / "store" / "trees")
    with pytest.raises(plugin.GracefulHTTPError) as error:
        run(plugin.RESOLVER.resolve_lora("/models/tiny", "skin-care"))
    assert error.value.http_status == 503
    assert str(error.value) == "skin-care cannot be fetched from the registry now"


@pytest.mark.parametrize(
    "trouble", [OSError(24, "Too many open files", "/srv/pins/x"), ValueError("/data/x"), KeyError()]
)
def test_whatever_goes_wrong_the_client_is_told_without_paths(
    plugin: ModuleType, stocked: Registry, trouble: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_: str, **__: object) -> Path:
        raise trouble

    plugin.RESOLVER.introduce(stocked, stocked.bases.get("tiny"), SimpleNamespace(max_lora_rank=8))
    monkeypatch.setattr(stocked.store, "folder", fails)
    with pytest.raises(plugin.GracefulHTTPError) as error:
        run(plugin.RESOLVER.resolve_lora("/models/tiny", "skin-care"))
    assert (error.value.http_status, str(error.value)) == (503, "skin-care cannot be fetched from the registry now")


def test_two_versions_are_never_called_the_same_while_a_name_moves(
    plugin: ModuleType, stocked: Registry, base, make_adapter
) -> None:
    tiny, resolver = stocked.bases.get("tiny"), plugin.RESOLVER
    stocked.adapters.alias("skin-care@v1", "champion")
    resolver.introduce(stocked, tiny, SimpleNamespace(max_lora_rank=8))
    names = ("skin-care", "skin-care@champion")
    before = [run(resolver.resolve_lora("/models/tiny", name)) for name in (*names, "skin-care@v1")]
    stocked.adapters.add(make_adapter(base, 3), base=tiny, role="ingredient", domain="skin-care")
    stocked.adapters.alias("skin-care@v2", "champion")
    after = [run(resolver.resolve_lora("/models/tiny", name)) for name in (*names, "skin-care@v2")]
    called = [request.lora_name for request in (*before, *after)]
    assert len(set(called)) == 6
    assert [name.partition("=")[0] for name in called] == [*names, "skin-care@v1", *names, "skin-care@v2"]


def test_what_a_client_asked_for_who_left_is_not_taken_for_served(
    plugin: ModuleType, stocked: Registry, held: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    fetching, go_on, real = threading.Event(), threading.Event(), serving.find

    def slow(*given: Any, **options: Any) -> serving.Servable:
        fetching.set()
        assert go_on.wait(60)
        return real(*given, **options)

    monkeypatch.setattr(plugin.serving, "find", slow)
    plugin.RESOLVER.introduce(stocked, stocked.bases.get("tiny"), SimpleNamespace(max_lora_rank=8))

    async def leave() -> None:
        task = asyncio.create_task(plugin.RESOLVER.resolve_lora("/models/tiny", "skin-care"))
        assert await asyncio.to_thread(fetching.wait, 60)
        task.cancel()
        await asyncio.wait([task])

    def left() -> None:
        loop = asyncio.new_event_loop()
        try:
            loop.run_until_complete(leave())
        finally:
            go_on.set()
            loop.run_until_complete(loop.shutdown_default_executor())
            loop.close()

    in_thread(left)
    stocked.adapters.archive("skin-care@v1", force=True)
    assert run(plugin.RESOLVER.moved()) == []
    assert len(held) == 1
    for _ in range(2):
        run(plugin.RESOLVER.release())
    assert held == []


class Models:
    """What vLLM keeps of the adapters it has loaded; `unload_lora_adapter` does what it is told, one call after the other."""

    def __init__(self, *does: Exception | str | None) -> None:
        self.base_model_paths = [SimpleNamespace(name="tiny")]
        self.lora_requests: dict[str, Any] = {}
        self.asked: list[str] = []
        self._does = itertools.chain(does, itertools.repeat(None))
        self._numbers = itertools.count(1)

    async def ask(self, plugin: ModuleType, name: str) -> Any:
        """What vLLM answers the request with; it asks the resolver for what it has not loaded."""
        if name not in self.lora_requests:
            found = await plugin.RESOLVER.resolve_lora("/models/tiny", name)
            found.lora_int_id = next(self._numbers)
            self.lora_requests[name] = found
        return self.lora_requests[name]

    async def unload_lora_adapter(self, request: Any) -> object:
        self.asked.append(request.lora_name)
        does = next(self._does)
        if isinstance(does, Exception):
            raise does
        if does is None:
            del self.lora_requests[request.lora_name]
        return does or "Success"


@pytest.mark.parametrize(
    ("name", "called"),
    [
        ("skin-care", ["skin-care=v1", "skin-care=v2", "skin-care=v1#2", "skin-care=v2#2"]),
        ("skin-care@mine", ["skin-care@mine=v1", "skin-care@mine=v2", "skin-care@mine=v1#2", "skin-care@mine=v2#2"]),
        ("skin-care@v1", ["skin-care@v1", None, "skin-care@v1#2", None]),
    ],
)
def test_a_version_that_comes_back_is_an_adapter_of_its_own(
    plugin: ModuleType, stocked: Registry, base, make_adapter, name: str, called: list[str | None]
) -> None:
    tiny, models = stocked.bases.get("tiny"), Models()
    stocked.adapters.add(make_adapter(base, 3), base=tiny, role="ingredient", domain="skin-care")
    plugin.RESOLVER.introduce(stocked, tiny, SimpleNamespace(max_lora_rank=8))

    async def serve() -> list[Any]:
        """What requests began with that all go on."""
        found = []
        for version in (1, 2, 1, 2):
            stocked.adapters.restore(f"skin-care@v{version}")
            stocked.adapters.alias(f"skin-care@v{version}", "mine")
            stocked.adapters.archive(f"skin-care@v{3 - version}", force=True)
            for moved in await plugin.RESOLVER.moved():
                await plugin._unload(models, moved)
            with suppress(plugin.GracefulHTTPError):
                found.append(await models.ask(plugin, name))
        return found

    under_way = run(serve())
    assert [request.lora_name for request in under_way] == [shown for shown in called if shown]
    batch = {request.lora_int_id: request for request in under_way}
    assert len(set(batch.values())) == len(batch) == len(under_way)  # vLLM loads as many as differ by name


@pytest.fixture
def held(stocked: Registry, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders of adapters that are in use, each as often as it is."""
    found, folder = list[Path](), stocked.store.folder

    def watched(digest: str, *, until: ExitStack | None = None) -> Path:
        place = folder(digest)
        if (place / "adapter_config.json").exists():
            found.append(place)
            if until is not None:
                until.callback(found.remove, place)
        return place

    monkeypatch.setattr(stocked.store, "folder", watched)
    return found


def test_a_tree_is_let_go_when_its_name_has_moved_on_and_the_last_answer_made_with_it_has_ended(
    plugin: ModuleType, stocked: Registry, base, make_adapter, held: list[Path]
) -> None:
    tiny, models = stocked.bases.get("tiny"), Models()
    plugin.RESOLVER.introduce(stocked, tiny, SimpleNamespace(max_lora_rank=8))

    async def looks() -> list[Path]:
        for _ in range(3):
            for moved in await plugin.RESOLVER.moved():
                await plugin._unload(models, moved)
            await plugin.RESOLVER.release()
        return [*held]

    async def serve() -> None:
        answers = [await models.ask(plugin, "skin-care"), await models.ask(plugin, "skin-care")]
        await models.ask(plugin, "skin-care@v1")
        older = Path(answers[0].lora_path)
        assert await looks() == [older, older]  # by two names
        stocked.adapters.add(make_adapter(base, 3), base=tiny, role="ingredient", domain="skin-care")
        assert await looks() == [older, older]
        assert [*models.lora_requests] == ["skin-care@v1"]
        newer = Path((await models.ask(plugin, "skin-care")).lora_path)
        answers.pop()
        assert await looks() == [older, older, newer]
        answers.pop()
        await plugin.RESOLVER.release()
        assert held == [older, older, newer]  # the engine may not have heard yet
        assert await looks() == [older, newer]
        stocked.adapters.archive("skin-care@v1", force=True)
        assert await looks() == [newer]

    run(serve())


def test_a_tree_that_is_refused_is_not_held(plugin: ModuleType, stocked: Registry, held: list[Path]) -> None:
    plugin.RESOLVER.introduce(stocked, stocked.bases.get("tiny"), SimpleNamespace(max_lora_rank=2))
    with pytest.raises(plugin.GracefulHTTPError, match="greater than max_lora_rank 2"):
        run(plugin.RESOLVER.resolve_lora("/models/tiny", "skin-care"))
    assert held == []


@pytest.mark.parametrize("trouble", [RuntimeError("the engine is busy"), "Failed to remove lora adapter"])
def test_an_alias_is_followed_however_often_vllm_fails_to_forget_it(
    plugin: ModuleType, stocked: Registry, trouble: Exception | str
) -> None:
    models = Models(trouble, trouble)
    plugin.RESOLVER.introduce(stocked, stocked.bases.get("tiny"), SimpleNamespace(max_lora_rank=8))

    async def serve() -> None:
        await models.ask(plugin, "spirit")
        await models.ask(plugin, "skin-care")
        stocked.adapters.archive("skin-care@v1", force=True)
        task = asyncio.create_task(plugin._follow(models, 0.001))
        for _ in range(1000):
            await asyncio.sleep(0.01)
            if "skin-care" not in models.lora_requests or task.done():
                break
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()

    run(serve())
    assert (models.asked, [*models.lora_requests]) == (["skin-care"] * 3, ["spirit"])


def test_the_server_is_told_of_the_registry_of_the_settings_and_follows_it(
    plugin: ModuleType, stocked: Registry, base, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RECCOCKTAIL_DATABASE_URL", "RECCOCKTAIL_STORE_URL", "RECCOCKTAIL_SERVE_BASE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RECCOCKTAIL_HOME", str(stocked.settings.home))
    monkeypatch.setenv("RECCOCKTAIL_SERVE_REFRESH", "0.01")
    config = SimpleNamespace(
        model_config=SimpleNamespace(model=str(base), revision=None),
        load_config=SimpleNamespace(load_format="auto"),
        lora_config=SimpleNamespace(target_modules=None, max_lora_rank=8),
    )
    models = Models()
    state = SimpleNamespace(openai_serving_models=models)

    async def serve() -> None:
        introduction = plugin.Introduction()
        await introduction.init_state(None, state, None)  # that of a server which only renders prompts
        assert not hasattr(state, "reccocktail_following")
        await introduction.init_state(SimpleNamespace(vllm_config=config), state, None)
        await models.ask(plugin, "skin-care")
        stocked.adapters.archive("skin-care@v1", force=True)
        for _ in range(1000):
            await asyncio.sleep(0.01)
            if not models.lora_requests:
                break
        state.reccocktail_following.cancel()

    run(serve())
    assert models.asked == ["skin-care"]


@pytest.mark.parametrize("seconds", ["soon", "-1", "nan", "inf"])
def test_a_server_without_a_registry_or_with_a_bad_setting_ends(
    plugin: ModuleType, tmp_path: Path, seconds: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start() -> None:
        config = SimpleNamespace(vllm_config=SimpleNamespace(lora_config=None))
        state = SimpleNamespace(openai_serving_models=Models())
        run(plugin.Introduction().init_state(config, state, None))

    monkeypatch.setenv("RECCOCKTAIL_HOME", str(tmp_path / "absent"))
    with pytest.raises(RecCocktailError, match="there is no database"):
        start()
    monkeypatch.setenv("RECCOCKTAIL_SERVE_REFRESH", seconds)
    with pytest.raises(UsageError, match=f"RECCOCKTAIL_SERVE_REFRESH='{seconds}' is no number of seconds"):
        start()
    assert run(plugin.RESOLVER.resolve_lora("/models/tiny", "skin-care")) is None


def test_names_that_mean_another_version_or_none_are_told(
    plugin: ModuleType, stocked: Registry, base, make_base, make_adapter
) -> None:
    tiny, resolver = stocked.bases.get("tiny"), plugin.RESOLVER
    other = stocked.bases.add("other", make_base(seed=7), source="elsewhere")
    stocked.adapters.add(
        make_adapter(base, 3),
        checks=Checks(allow_base_mismatch=True),
        base=other,
        role="ingredient",
        domain="skin-care",
    )
    for row in (tiny, other):
        stocked.adapters.alias("skin-care@v1", "candidate", base=row.name)
    resolver.introduce(stocked, tiny, SimpleNamespace(max_lora_rank=8))
    for name in ("skin-care", "skin-care@v1", "skin-care@candidate", "spirit", "spirit@v1"):
        run(resolver.resolve_lora("/models/tiny", name))
    assert run(resolver.moved()) == []
    stocked.adapters.add(make_adapter(base, 4), base=tiny, role="ingredient", domain="skin-care")
    stocked.adapters.remove_alias("skin-care@candidate", base="tiny")  # that of the other base stays
    stocked.adapters.archive("spirit@v1", force=True)
    assert run(resolver.moved()) == ["skin-care", "skin-care@candidate", "spirit", "spirit@v1"]
    resolver.forget("spirit")
    assert run(resolver.moved()) == ["skin-care", "skin-care@candidate", "spirit@v1"]


def test_all_names_are_looked_at_in_one_query(plugin: ModuleType, stocked: Registry, statements: list[str]) -> None:
    stocked.adapters.alias("skin-care@v1", "champion")
    plugin.RESOLVER.introduce(stocked, stocked.bases.get("tiny"), SimpleNamespace(max_lora_rank=8))
    for name in ("skin-care", "skin-care@v1", "skin-care@champion", "spirit", "spirit@v1"):
        run(plugin.RESOLVER.resolve_lora("/models/tiny", name))
    stocked.adapters.archive("spirit@v1", force=True)
    statements.clear()
    assert run(plugin.RESOLVER.moved()) == ["spirit", "spirit@v1"]
    assert len([statement for statement in statements if "SELECT" in statement]) == 1


@pytest.mark.parametrize(
    ("setting", "part"),
    [
        ({"VLLM_SKIP_MODEL_NAME_VALIDATION": True}, "answers to every name"),
        ({"VLLM_ALLOW_RUNTIME_LORA_UPDATING": False}, "asks no resolver"),
        ({"lora_config": None}, "was started without adapters"),
        ({"target_modules": ["q_proj"]}, "silently ignores parts of adapters"),
        ({"load_format": "dummy"}, "not known which weights are served"),
        ({"names": ["tiny", "skin-care"]}, "which is the name of adapters"),
        ({"model": "acme/model"}, "could not be identified as a base model"),
    ],
)
def test_settings_with_which_the_base_could_answer_are_refused(
    plugin: ModuleType,
    stocked: Registry,
    base: Path,
    setting: dict[str, Any],
    part: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("RECCOCKTAIL_SERVE_BASE", raising=False)

    def checked(model: str, load_format: str = "auto", names: tuple[str, ...] = ("tiny",), **lora: Any) -> Any:
        limits = (
            lora["lora_config"] if "lora_config" in lora else SimpleNamespace(target_modules=lora.get("target_modules"))
        )
        config = SimpleNamespace(
            model_config=SimpleNamespace(model=model, revision=None),
            load_config=SimpleNamespace(load_format=load_format),
            lora_config=limits,
        )
        return plugin._checked(stocked, config, list(names))

    assert checked(str(base)).name == "tiny"
    environment = {name: value for name, value in setting.items() if name.isupper()}
    for name, value in environment.items():
        monkeypatch.setattr(plugin.vllm_envs, name, value)
    with pytest.raises(RecCocktailError, match=part):
        checked(**{"model": str(base)} | {name: value for name, value in setting.items() if not name.isupper()})
