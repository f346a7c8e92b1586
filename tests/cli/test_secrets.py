"""A secret that is given where a person or a program may give text is in no row, event, log, card, error or line of output."""

from __future__ import annotations

import shutil
import sqlite3
import string
from pathlib import Path
from typing import Any

import pytest

TOKEN = "hf_" + (string.ascii_letters + string.digits)[:34]
PASSWORD, SIGNATURE = "hunter22", "5ecre7abc123"
SECRETS = {"token": TOKEN, "password": PASSWORD, "signature": SIGNATURE}


def secrets_in(text: str) -> list[str]:
    """Which of them the text has, in any case of letters: what is searched for is kept folded."""
    return [kind for kind, secret in SECRETS.items() if secret.casefold() in text.casefold()]


TEXTS = {
    "token": TOKEN,
    "password": f"postgresql://ann:{PASSWORD}@db.example/registry",
    "signature": f"https://cdn.example/blob?X-Amz-Signature={SIGNATURE}&Expires=9",
}
ALL = " and ".join(TEXTS.values())
REPO = "acme/skin-care"
README = """---
license: other
license_name: ours
license_link: {signature}
language: de
datasets: ["{signature}", "acme/{token}"]
---
# {token}
"""
PLACES: dict[str, tuple[str, ...]] = {
    "an adapter's source": ("adapter", "add", "{}", "--base", "tiny", "--domain", "skin-care"),
    "a metric's name": ("adapter", "add", "LORA", "--base", "tiny", "--domain", "kitchen", "--metric", "{}=1"),
    "a base's source": ("base", "add", "other", "{}"),
    "a base's revision": ("base", "add", "other", "acme/base", "--revision", "{}"),
    "a base's name": ("base", "add", "{}", "BASE"),
    "a domain's name": ("domain", "add", "{}"),
    "a domain's title": ("domain", "add", "toys", "--title", "{}"),
    "a domain's data": ("domain", "add", "toys", "--data", "{}"),
    "a domain's recipe": ("domain", "add", "toys", "--recipe", "{}"),
    "a domain's trainer": ("domain", "add", "toys", "--trainer", "{}"),
    "an alias": ("adapter", "alias", "skin-care@v1", "{}"),
    "a reference": ("adapter", "show", "{}"),
    "a recipe": ("build", "request", "skin-care", "--recipe", "{}"),
    "a system": ("evaluate", "{}", "--domain", "skin-care"),
    "who does it": ("--as", "{}", "adapter", "alias", "skin-care@v1", "best"),
    "a repository": ("publish", "skin-care", "--to", "{}"),
    "a repository's name": ("publish", "skin-care", "--to", "acme/{}"),
    "a publication's tag": ("publish", "skin-care", "--to", REPO, "--tag", "{}"),
    "a publication's license": ("publish", "skin-care", "--to", REPO, "--license", "{}"),
    "an option of training": ("train", "skin-care", "-o", "learning_rate={}"),
    "a template for training": ("train", "skin-care", "-o", "template={}"),
    "an option's name": ("train", "skin-care", "-o", "{}=1"),
    "a webhook's URL": ("webhook", "add", "ops", "{}", "--secret-env", "OPS_SECRET", "--allow-private"),
    "a webhook's name": ("webhook", "add", "{}", "https://8.8.8.8/hook", "--secret-env", "OPS_SECRET"),
    "a webhook's variable": ("webhook", "add", "ops", "https://8.8.8.8/hook", "--secret-env", "{}"),
    "a webhook's file": ("webhook", "add", "ops", "https://8.8.8.8/hook", "--secret-file", "{}"),
}


def kept(shell: Any) -> str:
    """Every row of the database, and every text file of the home outside of what users gave to be stored."""
    with sqlite3.connect(shell.home / "registry.sqlite") as database:
        rows = "\n".join(database.iterdump())
    files = [path for path in shell.home.rglob("*") if path.is_file() and "store" not in path.parts]
    return rows + "".join(path.read_text("utf-8", "replace") for path in files if not path.name.startswith("registry."))


@pytest.mark.parametrize("place", PLACES)
def test_a_secret_in_the_wrong_place_is_neither_kept_nor_shown(
    built: Any, loopback_hub: Any, loras: dict[str, Path], tiny_base: Path, place: str
) -> None:
    for text in TEXTS.values():
        given = {"LORA": str(loras["newer"]), "BASE": str(tiny_base)}
        words = [given.get(word) or word.replace("{}", text) for word in PLACES[place]]
        for more in ([], ["--json"]):
            answer = built(*words, *more, code=None)
            assert secrets_in(answer.out + answer.err) == [], words
            assert "a bug in RecCocktail" not in answer.out + answer.err
            assert secrets_in(kept(built)) == [], words
    assert not [repo for repo in loopback_hub.repos if TOKEN in repo]


def test_notes_and_tags_are_kept_without_their_secrets_and_it_is_said(built: Any, loras: dict[str, Path]) -> None:
    tags = [word for text in TEXTS.values() for word in ("--tag", text)]
    words = ("adapter", "add", loras["newer"], "--base", "tiny", "--domain", "skin-care", "--note", f"see {ALL}", *tags)
    answer = built(*words, "--tag", "plain", "--json")
    assert len([note for note in answer.json["notes"] if "secret" in note]) == 2
    assert answer.json["note"].startswith("see ")
    assert "plain" in answer.json["tags"]
    built("adapter", "alias", "skin-care@v2", "best")
    built("adapter", "alias", "skin-care@v1", "best")
    built("adapter", "archive", "skin-care@v2")
    shown = [built(*line.split()) for line in ("adapter show skin-care@v2 --json", "adapter log skin-care --json")]
    assert secrets_in(kept(built) + str([answer, *shown])) == []


def test_a_card_has_none_of_the_secrets_of_what_is_published(
    built: Any, loopback_hub: Any, loras: dict[str, Path], tmp_path: Path
) -> None:
    lora = tmp_path / "lora"
    shutil.copytree(loras["newer"], lora)
    (lora / "README.md").write_text(README.format(**TEXTS))
    built("domain", "add", "skin-care", "--title", f"Skin {TOKEN}")
    built("adapter", "add", lora, "--base", "tiny", "--domain", "skin-care", "--note", ALL, "--metric", "HR@1=0.5")
    answers = [
        built("publish", "skin-care@v2", "--to", REPO, "--dry-run"),
        built("publish", "skin-care@v2", "--to", REPO, "--json"),
        built("publication", "show", REPO, "--json"),
    ]
    published = {name: content.decode("utf-8", "replace") for name, content in loopback_hub.files(REPO).items()}
    assert "cdn.example" in published["README.md"]
    assert secrets_in(kept(built) + str([answers, loopback_hub.history(REPO), published])) == []
