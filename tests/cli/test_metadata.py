"""What people change of what is registered, and what `adapter add` and `train` take with a version."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

from reccocktail.cli.commands import ALL


def test_an_edit_is_seen_by_show_list_and_log(prepared: Any) -> None:
    edited = prepared(
        "adapter", "edit", "skin-care", "--tag", "prod", "--note", "Best", "--metric", "HR@1=0.5", "--json"
    )
    assert (edited.json["tags"], edited.json["note"], edited.json["metrics"]) == (["prod"], "Best", {"HR@1": 0.5})
    prepared("adapter", "edit", "skin-care", "--link", "run=https://mlflow.example/7", "--no-note")
    shown = prepared("adapter", "show", "skin-care", "--json").json
    assert (shown["note"], shown["links"]) == (None, {"run": "https://mlflow.example/7"})
    assert [row["ref"] for row in prepared("adapter", "list", "--tag", "prod", "--json").json] == ["skin-care@v1"]
    kinds = [event["kind"] for event in prepared("adapter", "log", "skin-care@v1", "--json").json]
    assert kinds == ["adapter.edited", "adapter.edited", "adapter.added"]
    assert "skin-care@v1 edited" in prepared("adapter", "log", "skin-care@v1").out
    logged = prepared("log").out
    assert "note: none → Best" in logged
    assert "{" not in logged


def test_domains_bases_and_builds_are_edited(built: Any) -> None:
    build = built("build", "list", "--json").json[0]["id"]
    for noun, name in (("domain", "skin-care"), ("base", "tiny"), ("build", build)):
        assert built(noun, "edit", name, "--tag", "a", "--description", "Why", "--json").json["tags"] == ["a"]
        assert built(noun, "show", name, "--json").json["description"] == "Why"
        assert "Why" in built(noun, "show", name).out
        assert "no tag 'b'" in built(noun, "edit", name, "--untag", "b", code=2).err


def test_an_edit_of_nothing_is_wrong_usage(prepared: Any) -> None:
    assert "say what to change" in prepared("adapter", "edit", "skin-care", code=2).err
    assert prepared("adapter", "edit", "skin-care", "--note", "x", "--no-note", code=2).err
    assert prepared("adapter", "edit", "skin-care", "--metric", "HR@1=high", code=2).err


def test_renaming_and_removing(prepared: Any, tiny_base: Path) -> None:
    prepared("base", "add", "spare", tiny_base)
    assert prepared("base", "remove", "spare", "--json").json["name"] == "spare"
    assert [row["name"] for row in prepared("base", "list", "--json").json] == ["tiny"]
    prepared("domain", "rename", "skin-care", "cosmetics")
    assert prepared("adapter", "show", "cosmetics@v1", "--json").json["domain"] == "cosmetics"
    prepared("domain", "remove", "kitchen")
    assert [row["name"] for row in prepared("domain", "list", "--json").json] == ["cosmetics"]
    refused = prepared("domain", "remove", "cosmetics", "--json", code=1).json["error"]
    assert refused["code"] == "conflict"
    assert "cosmetics@v1" in refused["message"]
    assert "cosmetics@v1" in prepared("base", "remove", "tiny", code=1).err


def test_adding_says_whether_it_is_new_and_sets_aliases_with_it(prepared: Any, loras: dict[str, Path]) -> None:
    words = (
        "adapter",
        "add",
        loras["newer"],
        "--base",
        "tiny",
        "--domain",
        "skin-care",
        "--alias",
        "candidate",
        "--json",
    )
    first = prepared(*words).json
    assert (first["created"], first["ref"], first["aliases"]) == (True, "skin-care@v2", ["candidate"])
    again = prepared(*words, "--alias", "second", "--note", "ignored")
    assert (again.json["created"], again.json["ref"], again.json["aliases"]) == (
        False,
        "skin-care@v2",
        ["candidate", "second"],
    )
    assert "adapter edit skin-care@v2" in again.err
    refused = prepared(*words, "--alias", "third", "--if-exists", "fail", code=1).json["error"]
    assert refused["code"] == "conflict"
    assert "skin-care@v2" in refused["message"]
    assert prepared("adapter", "show", "skin-care@v2", "--json").json["aliases"] == ["candidate", "second"]
    assert prepared("adapter", "add", *words[2:-3], "--alias", "v7", code=2).err


def test_every_group_that_has_rows_to_edit_lists_it() -> None:
    groups = {command.name: command for command in ALL}
    for name in ("adapter", "domain", "base", "build"):
        assert "edit" in groups[name].commands


def test_the_code_and_the_run_are_kept_without_credentials(prepared: Any, loras: dict[str, Path]) -> None:
    git = ("git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(prepared.folder))
    for words in (
        ("init", "-q"),
        ("commit", "-q", "--allow-empty", "-m", "x"),
        ("remote", "add", "origin", "https://ann:geheim99@example.org/code.git"),
    ):
        subprocess.run([*git, *words], check=True)
    commit = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    words = ("adapter", "add", loras["newer"], "--base", "tiny", "--domain")
    found = prepared(*words, "skin-care", "--json", MLFLOW_RUN_ID="7", WANDB_API_KEY="geheim99").json["context"]
    assert found["source"]["git_commit"] == commit
    assert found["source"]["git_remote"].endswith("example.org/code.git")
    assert found["run"] == {"mlflow_run_id": "7"}
    assert "geheim99" not in str(found)
    given = prepared(
        *words, "kitchen", "--source", "https://example.org/c", "--run", "https://wandb.ai/x", "--json"
    ).json
    assert (given["context"]["source"], given["context"]["run"]) == (
        {"url": "https://example.org/c"},
        {"url": "https://wandb.ai/x"},
    )
    assert prepared(*words, "kitchen", "--run", "https://ann:geheim99@example.org/x", code=2).err
