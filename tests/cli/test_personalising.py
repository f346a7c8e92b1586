"""A personalised LoRA in the commands: registered, refused as an ingredient, and written for one user."""

from __future__ import annotations

import json
import os
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from reccocktail.engine import personal, personalising
from reccocktail.networks.bundle import open_bundle
from reccocktail.tasks import ClickRow, ClickUser, DomainData, History, Item, RatedItem, write_domain
from safetensors.torch import load_file

ITEMS = tuple(f"item-{number}" for number in range(4))
RATINGS = [5.0, 1.0, 4.0, 2.0]
OWN = ("adapter_config.json", "adapter_model.safetensors", "coefficients.json")


@pytest.fixture
def films(prepared: Any, make_bundle: Callable[..., Path], tmp_path: Path) -> Any:
    """`prepared` with films@v1, a personalised LoRA for `tiny`; user-a and `new` have histories, user-b is only known by id."""
    rated = {"ratings": RATINGS, "timestamps": [1, 2, 3, 4]}
    histories = [History(user, ITEMS, dict(rated)) for user in ("user-a", "new", "../odd")]
    write_domain(DomainData.of("films", [Item(item, f"Thing {item}") for item in ITEMS], histories), tmp_path / "films")
    prepared("domain", "add", "films", "--data", tmp_path / "films")
    with prepared.registry() as registry:
        make_bundle(registry, tmp_path / "bundle")
        make_bundle(registry, tmp_path / "of-target", seed=4, target=True)
    prepared("adapter", "add", tmp_path / "bundle", "--base", "tiny", "--domain", "films")
    return prepared


def test_a_bundle_is_listed_shown_and_verified_as_what_it_is(films: Any, tmp_path: Path) -> None:
    (row,) = films("adapter", "list", "--kind", "personalised-lora", "--json").json
    assert (row["ref"], row["kind"]) == ("films@v1", "personalised-lora")
    assert [each["kind"] for each in films("adapter", "list", "--kind", "lora", "--json").json] == ["lora", "lora"]
    shown = films("adapter", "show", "films", "--json").json
    assert shown["ref"] == "films@v1"
    assert {
        name: shown["context"]["bundle"][name] for name in ("metas", "form", "temperature", "target_dependent")
    } == {
        "metas": 3,
        "form": "sum",
        "temperature": 0.5,
        "target_dependent": False,
    }
    assert films("adapter", "verify", "films@v1", "--json").json["ok"] is True
    films("store", "verify")
    (tmp_path / "all.yaml").write_text(films("export").out)
    other = type(films)(tmp_path / "other", tmp_path / "elsewhere")
    other("init")
    other("apply", "-f", tmp_path / "all.yaml")
    (there,) = other("adapter", "list", "--kind", "personalised-lora", "--json").json
    assert (there["digest"], there["context"]) == (row["digest"], row["context"])
    (domain,) = [row for row in films("status", "--json").json if row["domain"] == "films"]
    assert domain["state"] == "cold"  # as any domain without an ingredient
    films("adapter", "archive", "spirit@v1", "--force")
    (alone,) = films("status", "films", "--json").json
    assert (alone["state"], "films@v1 is a personalised LoRA" in alone["reasons"][0]) == ("cold", True)
    told = films("adapter", "show", "films", columns=80).out
    assert "ingredient" not in told
    assert not [line for line in told.splitlines() if len(line) > 80 and "sha256:" in line]


@pytest.mark.parametrize(
    "words",
    [
        ("resolve", "films"),
        ("resolve", "films@v1", "--format", "vllm"),
        ("resolve", "films@v1", "--format", "peft", "-o", "mine"),
        ("build", "request", "films", "--recipe", "average"),
        ("merge", "tiny", "-a", "films@v1=1", "-o", "merged"),
        ("merge", "tiny", "-a", "{bundle}=1", "-o", "merged"),
        ("adapter", "alias", "films@v1", "champion"),
        ("adapter", "diff", "films@v1", "films@v1"),
    ],
)
def test_whatever_wants_a_plain_lora_refuses_it_and_says_what_to_do(films: Any, tmp_path: Path, words: Any) -> None:
    words = [word.format(bundle=tmp_path / "bundle") for word in words]
    error = films(*words, "--json", code=1).json["error"]
    assert error["code"] == "wrong_kind"
    assert "personalise" in error["hint"]
    assert "recommend" in error["hint"]
    assert not {"mine", "merged"} & {path.name for path in films.folder.iterdir()}


@torch.no_grad()
def test_a_users_lora_is_what_the_gates_say_of_the_users_history(films: Any, tmp_path: Path) -> None:
    told = films("personalise", "films", "user-a", "-o", "mine", "--json")
    assert told.json["adapter"] == "films@v1"
    (user,) = told.json["users"]
    assert user == {"user": "user-a", "known_user": True, "history": 4, "fallback": False, "path": str(films.folder / "mine")}  # fmt: skip
    assert "fall" not in told.err
    bundle = open_bundle(tmp_path / "bundle")
    rated = tuple(RatedItem(item, rating) for item, rating in zip(ITEMS, RATINGS, strict=True))
    (alpha,) = bundle.coefficients([ClickRow.candidate(ClickUser("user-a", {}, rated), "item-5")])
    kept = json.loads((films.folder / "mine" / "coefficients.json").read_text())
    assert torch.allclose(torch.tensor([*kept["modules"].values()]), alpha, atol=1e-6)
    tensors = load_file(films.folder / "mine" / "adapter_model.safetensors")
    config = json.loads((films.folder / "mine" / "adapter_config.json").read_text())
    scale = config["lora_alpha"] / config["r"]
    for name, factors in bundle.net.factors(alpha).items():
        a, b = (tensors[f"base_model.model.{name}.lora_{side}.weight"].double() for side in "AB")
        assert torch.allclose(b @ a * scale, factors.b @ factors.a * factors.scale, atol=1e-6)
    films("merge", "tiny", "-a", "./mine=1", "-o", "merged")  # it is a plain LoRA like any other
    films("personalise", "films", "user-a", "-o", "whole", "--format", "checkpoint")
    one, other = (load_file(films.folder / name / "model.safetensors") for name in ("merged", "whole"))
    assert all(torch.allclose(one[name], other[name], atol=1e-6) for name in one)
    films("personalise", "films", "user-a", "-o", "lively", "--spirit", "0.4")
    assert (films.folder / "lively" / "adapter_config.json").is_file()


def test_users_without_a_history_get_the_fallback_and_each_of_several_a_folder(films: Any) -> None:
    told = films("personalise", "films", "user-b", "new", "nobody", "../odd", "new", "-o", "all", "--json")
    users = {each["user"]: each for each in told.json["users"]}
    assert {name: (each["known_user"], each["history"], each["fallback"]) for name, each in users.items()} == {
        "user-b": (True, 0, True),
        "new": (False, 4, False),
        "nobody": (False, 0, True),
        "../odd": (False, 4, False),
    }
    assert [name in told.err for name in ("user-b", "nobody", "odd")] == [True, True, False]
    folders = [Path(each["path"]) for each in users.values()]
    assert {path.parent for path in folders} == {films.folder / "all"}
    assert {path.name for path in folders} == {path.name for path in (films.folder / "all").iterdir()}
    assert all((path / name).is_file() for path in folders for name in OWN)
    alphas = [json.loads((path / "coefficients.json").read_text())["modules"] for path in folders]
    assert alphas[1] == alphas[3] != alphas[2]  # unknown by id, with one history
    assert alphas[0] != alphas[2]


def test_what_cannot_be_written_for_a_user_is_refused_before_anything_is(films: Any, tmp_path: Path) -> None:
    films("adapter", "add", tmp_path / "of-target", "--base", "tiny", "--domain", "films", "--alias", "asked")
    films("domain", "add", "without-data")
    films("adapter", "add", tmp_path / "bundle", "--base", "tiny", "--domain", "without-data")
    for ref, code, exit_code in (
        ("films", "target_dependent", 1),
        ("films@asked", "target_dependent", 1),
        ("without-data", "usage", 2),
        ("skin-care", "wrong_kind", 1),
        ("skin-care@v1", "wrong_kind", 1),
        ("absent", "not_found", 1),
    ):
        answer = films("personalise", ref, "user-a", "-o", "mine", "--json", code=exit_code)
        assert answer.json["error"]["code"] == code, ref
    films("domain", "add", "still-empty")
    answer = films("personalise", "still-empty", "user-a", "-o", "mine", "--json", code=1)
    assert answer.json["error"]["code"] == "not_found"
    assert "--trainer reclora" in answer.json["error"]["hint"]
    assert not (films.folder / "mine").exists()


@pytest.mark.parametrize(("module", "name"), [(personal, "_lift"), (personalising, "merge_folders")])
def test_a_kill_leaves_no_folder_and_the_next_run_clears_up(films: Any, tmp_path: Path, module: Any, name: str) -> None:
    (tmp_path / "temporary").mkdir()
    child = os.fork()
    if not child:
        with (
            patch.object(module, name, lambda *words: os.kill(os.getpid(), signal.SIGKILL)),
            patch.object(tempfile, "tempdir", str(tmp_path / "temporary")),
        ):
            films("personalise", "films", "user-a", "-o", "mine", code=None)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    left = [path.name for path in films.folder.iterdir()]
    assert "mine" not in left
    assert any(name.endswith(".part") for name in left)
    assert not [*(tmp_path / "temporary").iterdir()]
    films("personalise", "films", "user-a", "-o", "mine")
    assert [path.name for path in films.folder.iterdir()] == ["mine"]
    assert {path.name for path in (films.folder / "mine").iterdir()} >= {*OWN}


def test_a_bundle_is_published_only_without_its_users_and_then_answers_all_as_unknown_ones(
    films: Any, loopback_hub: Any, tmp_path: Path
) -> None:
    for name in ("LICENSE", "README.md", "training_log.jsonl"):  # of which only the first is no place for a user
        (tmp_path / "bundle" / name).write_text(
            "MIT License" if name == "LICENSE" else '{"worst": "user-a", "best": "user-b"}'
        )
    films("domain", "add", "again")
    films("adapter", "add", tmp_path / "bundle", "--base", "tiny", "--domain", "again")
    error = films("publish", "again@v1", "--to", "acme/again", "--json", code=1).json["error"]
    assert error["code"] == "user_data"
    assert "--strip-users" in error["hint"]
    films("publish", "again@v1", "--to", "acme/again", "--strip-users", "--dry-run", "--card-template", "x.md", code=2)
    done = films("publish", "again@v1", "--to", "acme/again", "--strip-users", "--json").json
    assert done["adapter"] == "again@v1"
    files = loopback_hub.files("acme/again")
    assert {*files} - {".gitattributes"} == {
        "README.md", "LICENSE", "provenance.json", "bundle.json", "gated_lora.safetensors", "din.json", "din.safetensors",
        "items.json", "items.safetensors",
    }  # fmt: skip
    assert not [name for name, content in files.items() if b"user-a" in content or b"user-b" in content]
    card = files["README.md"].decode()
    assert "personalised-lora" in card
    assert "reccocktail personalise again USER" in card

    films("domain", "add", "theirs")
    films("adapter", "add", "acme/again", "--base", "tiny", "--domain", "theirs")
    with films.registry() as registry:
        row = registry.adapters.resolve("theirs", kind="personalised-lora")
        theirs = open_bundle(registry.adapters.folder(row))
    ours = open_bundle(tmp_path / "bundle")
    assert theirs.manifest.users == row.context["bundle"]["users"] == 0
    rated = tuple(RatedItem(item, rating) for item, rating in zip(ITEMS, RATINGS, strict=True))
    asked = {user: [ClickRow.candidate(ClickUser(user, {}, rated), "item-5")] for user in ("user-a", "stranger")}
    as_stranger = ours.coefficients(asked["stranger"])
    assert all(torch.equal(theirs.coefficients(rows), as_stranger) for rows in asked.values())
    assert not torch.equal(ours.coefficients(asked["user-a"]), as_stranger)
    films("publish", "theirs@v1", "--to", "acme/theirs")  # which holds no users
    assert loopback_hub.files("acme/theirs")["din.json"] == files["din.json"]
