from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from reccocktail.cli import commands

ADAPTER = {
    "ref", "role", "domain", "base", "version", "digest", "rank", "alpha", "target_modules", "tensors", "bytes",
    "metrics", "tags", "created_at",
}  # fmt: skip
BUILD = {
    "id", "domain", "status", "key", "digest", "recipe", "coefficients", "inputs", "path", "report", "error",
    "created_at", "started_at", "finished_at",
}  # fmt: skip

Words = tuple[str, ...]
ASKED: list[Words] = [
    ("init",),
    ("status",),
    ("status", "skin-care"),
    ("doctor",),
    ("base", "add", "tiny", "{tiny_base}"),
    ("base", "list"),
    ("base", "show", "tiny"),
    ("domain", "add", "toys", "--title", "Toys"),
    ("domain", "sync"),
    ("domain", "list"),
    ("domain", "show", "skin-care"),
    ("adapter", "add", "{newer}", "--base", "tiny", "--domain", "skin-care"),
    ("adapter", "list"),
    ("adapter", "show", "spirit"),
    ("adapter", "diff", "spirit", "skin-care"),
    ("adapter", "log", "skin-care"),
    ("adapter", "alias", "skin-care@v1", "candidate"),
    ("adapter", "archive", "skin-care@v1", "--force"),
    ("adapter", "verify", "spirit"),
    ("adapter", "edit", "spirit", "--tag", "prod"),
    ("domain", "edit", "kitchen", "--note", "small"),
    ("domain", "rename", "kitchen", "pantry"),
    ("domain", "remove", "kitchen"),
    ("base", "edit", "tiny", "--tag", "prod"),
    ("build", "edit", "{build}", "--tag", "prod"),
    ("evaluate", "tiny", "skin-care", "--domain", "skin-care", "--limit", "2"),
    ("recipe", "list"),
    ("recipe", "show", "default"),
    ("recipe", "check", "{small_recipe}"),
    ("recipe", "methods"),
    ("recipe", "add", "house", "{small_recipe}"),
    ("recipe", "log", "small"),
    ("recipe", "diff", "small", "average"),
    ("template", "list"),
    ("template", "show", "pick-one"),
    ("template", "diff", "pick-one", "top-five"),
    ("build", "request", "skin-care"),
    ("build", "request", "skin-care", "--recipe", "spirit-only", "--wait"),
    ("build", "list"),
    ("build", "show", "{build}"),
    ("build", "logs", "{build}"),
    ("build", "export", "{build}", "exported"),
    ("build", "alias", "skin-care@production", "shadow"),
    ("build", "promote", "skin-care@production"),
    ("build", "pin", "skin-care@production"),
    ("build", "policy", "skin-care"),
    ("build", "history", "skin-care"),
    ("rollback", "skin-care", "--to", "skin-care@production", "--dry-run"),
    ("evaluation", "list"),
    ("export",),
    ("worker", "--once"),
    ("log", "--domain", "skin-care"),
    ("publish", "skin-care", "--to", "acme/skin-care", "--dry-run"),
    ("publish", "--stale", "--dry-run"),
    ("publication", "list"),
    ("publication", "show", "acme/shown"),
    ("unpublish", "acme/shown"),
    ("verify", "{built_folder}"),
    ("resolve", "skin-care"),
    ("resolve", "skin-care", "--format", "vllm"),
    ("resolve", "skin-care", "--format", "peft", "-o", "for-peft"),
    ("resolve", "skin-care", "--merged"),
    ("recommend", "skin-care", "--history", "Lumen Toner Luxe", "-k", "3", "--retrieve", "5"),
    ("merge", "{tiny_base}", "-a", "{spirit}=0.5", "-o", "merged", "--allow-base-mismatch"),
    ("trainers", "list"),
    ("trainers", "show", "sft"),
    ("store", "verify"),
    ("store", "gc", "--dry-run"),
    ("db", "upgrade"),
    ("db", "downgrade", "0001", "--allow-data-loss"),
    ("db", "current"),
    ("db", "check"),
    ("token", "create", "ci", "--scope", "read"),
    ("token", "list"),
]
CHANGED_BY_STEPS = {
    ("token", "revoke"),
    ("apply",),
    ("evaluation", "show"),
    ("evaluation", "compare"),
    ("adapter", "approve"),
    ("build", "approve"),
    ("domain", "gate"),
    ("build", "cancel"),
    ("build", "retry"),
    ("base", "remove"),
    ("recipe", "import"),
    ("template", "add"),
    ("template", "log"),
    *(
        ("webhook", name)
        for name in (
            "add",
            "deliver",
            "disable",
            "edit",
            "enable",
            "list",
            "log",
            "redeliver",
            "remove",
            "show",
            "test",
        )
    ),
}  # answered in a test of their own
LONG = {
    ("demo",),
    ("train",),
    ("completion",),
    ("personalise",),
    ("server",),
}
# `train` in test_training_answers_with_the_adapter; `demo` is the README's; a script is no JSON; `personalise` wants a bundle:
# tests/cli/test_personalising.py


@pytest.fixture
def ask(
    built: Any, tiny_base: Path, loras: dict[str, Path], small_recipe: Path, loopback_hub: object
) -> Callable[..., Any]:
    """(words): the command's JSON document; `{names}` in the words are filled in."""
    row = built("build", "list", "--json").json[0]
    newest = row["id"]
    with built.registry() as registry:
        registry.publications.add(registry.builds.get(newest), "acme/shown", "c" * 40)
    names = {"built_folder": row["path"]} | {
        "tiny_base": tiny_base,
        "small_recipe": small_recipe,
        "build": newest,
        **loras,
    }

    def run(*words: str) -> Any:
        answer = built(*(word.format(**names) for word in words), "--json")
        return answer.json

    return run


@pytest.mark.parametrize("words", ASKED, ids=lambda words: " ".join(words[:2]))
def test_the_answer_is_one_json_document(ask: Callable[..., Any], words: Words) -> None:
    assert isinstance(ask(*words), dict | list)


def test_every_command_has_been_asked() -> None:
    def leaves(command: click.Command, path: Words) -> Iterator[Words]:
        if not isinstance(command, click.Group):
            yield path
            return
        for name, below in command.commands.items():
            yield from leaves(below, (*path, name))

    every = {path for command in commands.ALL for path in leaves(command, (str(command.name),))}
    asked = {path for path in every for words in ASKED if words[: len(path)] == path}
    assert every - asked == CHANGED_BY_STEPS | LONG


@pytest.mark.parametrize(
    "words",
    [
        ("adapter", "show", "skin-care"),
        ("adapter", "alias", "skin-care", "champion"),
        ("adapter", "add", "{newer}", "--base", "tiny", "--domain", "skin-care"),
    ],
)
def test_an_adapter_answers_every_name_of_the_contract(ask: Callable[..., Any], words: Words) -> None:
    document = ask(*words)
    assert document.keys() >= ADAPTER
    assert (document["role"], document["domain"], document["base"]) == ("ingredient", "skin-care", "tiny")
    assert (document["rank"], document["alpha"]) == (4, 8.0)
    assert document["digest"].startswith("sha256:")


def test_listed_adapters_answer_every_name_of_the_contract(ask: Callable[..., Any]) -> None:
    listed = ask("adapter", "list")
    assert [entry["ref"] for entry in listed] == ["skin-care@v1", "spirit@v1"]
    assert all(entry.keys() >= ADAPTER for entry in listed)
    assert listed[0]["metrics"] == {"HR@1": 0.25}


def test_builds_answer_every_name_of_the_contract(ask: Callable[..., Any]) -> None:
    listed = ask("build", "list")
    assert len(listed) == 2
    for entry in [*listed, ask("build", "show", "{build}"), *ask("build", "request", "skin-care")]:
        assert entry.keys() >= BUILD
        assert entry["status"] == "succeeded"
        assert Path(entry["path"], "model.safetensors").is_file()


def test_a_build_that_is_cancelled_and_retried_answers_as_a_build(ask: Callable[..., Any]) -> None:
    (queued,) = ask("build", "request", "skin-care", "--recipe", "ingredient-only")
    for step, status in (("cancel", "cancelled"), ("retry", "queued")):
        document = ask("build", step, queued["id"])
        assert document.keys() >= BUILD
        assert document["status"] == status


def test_progress_and_remarks_stay_off_stdout_in_a_process_of_its_own(prepared: Any) -> None:
    answer = prepared.process("build", "request", "skin-care", "--wait", "--json")
    (document,) = answer.json
    assert document["status"] == "succeeded"
    assert document["id"] in answer.err


@pytest.mark.usefixtures("warm_children")
def test_training_answers_with_the_adapter(prepared: Any) -> None:
    options = (
        "epochs=1",
        "examples=4",
        "batch_size=4",
        "negatives=2",
        "target_modules=q_proj",
        "rank=2",
        "template=ours",
    )
    template = prepared.folder / "ours.yaml"
    template.write_text(prepared("template", "show", "next-title").out)
    prepared("template", "add", "ours", template)
    template.unlink()
    words = [word for option in options for word in ("-o", option)]
    labels = ("--tag", "nightly", "--note", "a trial", "--alias", "candidate", "--run", "https://wandb.ai/x")
    document = prepared("train", "skin-care", *words, *labels, "--json").json
    assert document.keys() >= ADAPTER
    assert (document["ref"], document["rank"], document["target_modules"]) == ("skin-care@v2", 2, ["q_proj"])
    assert (document["tags"], document["note"], document["aliases"]) == (["nightly"], "a trial", ["candidate"])
    context = document["context"]
    assert (context["options"]["template"], context["run"]) == ("ours@v1", {"url": "https://wandb.ai/x"})
    listed = {each["name"]: each["digest"] for each in prepared("template", "list", "--json").json}
    assert context["template"]["digest"] == listed["next-title"], "which says the same"


@pytest.mark.parametrize(
    ("words", "exit_code", "code"),
    [
        (("base", "show", "absent"), 1, "not_found"),
        (("recipe", "show", "absent"), 1, "recipe"),
        (("trainers", "show", "absent"), 1, "trainer"),
        (("adapter", "show", "Not A Reference"), 2, "invalid_reference"),
        (("build", "list", "--limit", "0"), 2, "usage"),
        (("build", "nonsense"), 2, "usage"),
    ],
)
def test_an_error_is_one_json_document_too(prepared: Any, words: Words, exit_code: int, code: str) -> None:
    answer = prepared(*words, "--json", code=exit_code)
    assert answer.json.keys() == {"error"}
    error = answer.json["error"]
    assert error.keys() == {"code", "message", "hint"}
    assert error["code"] == code
    assert error["message"]
    assert isinstance(error["hint"], str)


def test_an_error_before_the_command_is_known_is_json_too(bare: Any) -> None:
    done = bare.process("--json", code=2)
    assert json.loads(done.out)["error"]["code"] == "usage"
