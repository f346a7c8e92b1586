"""A bi-tuning on the Hub: published, verified, and answering by transformers alone as it does here."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from reccocktail.networks.bi_tuning import open_bi_tuning
from reccocktail.networks.laser import load_frozen
from reccocktail.registry.artifacts.bundles import bundle_files
from reccocktail.tasks import DomainData, Item, write_domain

TITLES = [
    "Rose Cream",
    "Green Tea Toner",
    "Clay Mask",
    "Oat Soap",
    "Night Serum",
    "Sun Milk",
    "Lip Balm",
    "Aloe Gel",
    "Bath Salt",
    "Hair Oil",
    "Eye Cream",
    "Foot Balm",
]
ITEMS = [
    Item(f"i{n:02d}", title, {"brand": f"B{n % 3}", "category": ["Care", title]}) for n, title in enumerate(TITLES)
]
HISTORY = [ITEMS[0], ITEMS[5], ITEMS[2], ITEMS[7], Item("new", "Beard Wax")]
FILES = {"README.md", "LICENSE", "provenance.json", "bundle.json", "item_side.safetensors", "user_side.safetensors", "index.safetensors"}  # fmt: skip
ID_RECOMMENDER = {"bert4rec.json", "bert4rec.safetensors"}
WITHOUT_US = """
import runpy, sys
class Refusing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "reccocktail":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Refusing())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture
def things(prepared: Any, make_bi_tuning: Callable[..., Path], tiny_base: Path, tmp_path: Path) -> Any:
    """`prepared` with things@v1, a bi-tuning with a static prefix, and things@v2, one with M-Former."""
    write_domain(DomainData.of("things", ITEMS, []), tmp_path / "things")
    prepared("domain", "add", "things", "--data", tmp_path / "things")
    with prepared.registry() as registry:
        digest = registry.bases.get("tiny").digest
    for number, prefix in enumerate(("static", "m-former"), start=1):
        folder = make_bi_tuning(tmp_path / prefix, digest, ITEMS, model=tiny_base, prefix=prefix)
        (folder / "LICENSE").write_text("MIT License")
        (folder / "README.md").write_text("a card of user-a")
        (folder / "training_log.jsonl").write_text('{"worst": "user-a"}')
        prepared("adapter", "add", folder, "--base", "tiny", "--domain", "things", "--metric", f"validation_ndcg_10=0.{number}")  # fmt: skip
    return prepared


@pytest.mark.parametrize(("number", "prefix"), [(1, "static"), (2, "m-former")])
def test_what_is_published_answers_by_transformers_alone_as_it_does_here(
    things: Any, loopback_hub: Any, tiny_base: Path, tmp_path: Path, number: int, prefix: str
) -> None:
    dry = things("publish", f"things@v{number}", "--to", "acme/things", "--dry-run", "--json").json
    assert {file["path"] for file in dry["files"]} == (FILES | ID_RECOMMENDER if number == 2 else FILES)
    things("publish", f"things@v{number}", "--to", "acme/things")
    files = loopback_hub.files("acme/things")
    assert {*files} - {".gitattributes"} == {file["path"] for file in dry["files"]}
    assert not [name for name, content in files.items() if b"user-a" in content]
    folder = tmp_path / "fetched"
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    card = files["README.md"].decode()
    head = yaml.safe_load(card.split("---")[1])
    assert {"bi-tuning", "sequential-recommendation"} <= {*head["tags"]}
    told = json.loads(files["bundle.json"])
    assert all(each in card for each in (told["base"], *told["data"], f"0.{number}", "no user's id", prefix))

    (program,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert number == 2 or len([line for line in program.splitlines() if line]) <= 40
    (tmp_path / "recommend.py").write_text(program)
    told_items = [{"item_id": i.item_id, "title": i.title, "brand": i.fields.get("brand", ""), "category": ", ".join(i.fields.get("category", ()))} for i in HISTORY]  # fmt: skip
    (tmp_path / "history.json").write_text(json.dumps(told_items))
    command = [
        sys.executable,
        "-c",
        WITHOUT_US,
        tmp_path / "recommend.py",
        folder,
        tiny_base,
        tmp_path / "history.json",
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    theirs = [line.split() for line in done.stdout.splitlines()]
    bundle = open_bi_tuning(folder)
    user = bundle.users(*load_frozen(tiny_base, "cpu", "float32")).encode([HISTORY])[0]
    ours = bundle.index.search(user, 10)
    assert [name for name, _ in theirs] == [found.item_id for found in ours]
    assert [float(score) for _, score in theirs] == pytest.approx([found.score for found in ours], abs=1e-5)


def test_each_file_that_was_damaged_is_named_by_verify_and_by_publish(things: Any, loopback_hub: Any, tmp_path: Path) -> None:  # fmt: skip
    things("publish", "things@v2", "--to", "acme/things")
    assert things("verify", "acme/things", "--json").json["ok"] is True
    assert things("verify", "acme/things", "--json").json["known_as"] == "things@v2"
    things("adapter", "verify", "things@v2")
    things("adapter", "add", "acme/things", "--base", "tiny", "--domain", "things")
    with things.registry() as registry:
        kept = registry.adapters.folder(registry.adapters.resolve("things@v2", kind="bi-tuning"))
    folder = tmp_path / "fetched"
    folder.mkdir()
    for name, content in loopback_hub.files("acme/things").items():
        (folder / name).write_bytes(content)
    for name in sorted((FILES | ID_RECOMMENDER) - {"README.md", "LICENSE", "provenance.json"}):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        assert name in "".join(things("verify", folder, "--json", code=1).json["problems"])
        (folder / name).write_bytes(whole)
        path = kept / name
        path.chmod(0o644)
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        assert name in json.dumps(things("adapter", "verify", "things@v2", "--json", code=1).json)
        error = things("publish", "things@v2", "--to", "acme/other", "--dry-run", "--json", code=None).json["error"]
        assert name in error["message"]
        path.write_bytes(whole)


def test_a_bi_tuning_that_may_hold_users_is_not_published(things: Any, tmp_path: Path) -> None:
    path = tmp_path / "m-former" / "bert4rec.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"users": ["user-a"]}))
    told = json.loads((tmp_path / "m-former" / "bundle.json").read_text())
    told["files"] |= bundle_files(path.parent, (path.name,))
    (tmp_path / "m-former" / "bundle.json").write_text(json.dumps(told))
    things("adapter", "add", tmp_path / "m-former", "--base", "tiny", "--domain", "things")
    words = ("publish", "things@v3", "--to", "acme/things", "--dry-run", "--offline")
    assert things(*words, "--json", code=1).json["error"]["code"] == "user_data"
    things(*words[:1], "things@v1", *words[2:], "--card-template", "x.md", code=2)
