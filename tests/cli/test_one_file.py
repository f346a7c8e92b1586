"""`apply` and `export` as they are typed."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from reccocktail.cli.one_file import _value
from reccocktail.trainers.domains import DomainCheck

from .conftest import Shell


@pytest.fixture
def declared(bare: Any, tiny_base: Path, loras: dict[str, Path], data: Path) -> Path:
    bare("init")
    path = bare.folder / "declared" / "registry.yaml"
    path.parent.mkdir()
    (path.parent / "loras").symlink_to(loras["ingredient"].parent)
    path.write_text(f"""\
bases:
  tiny: {{source: {tiny_base}}}
domains:
  skin-care: {{title: Skin Care, data: {data / "skin-care"}, recipe: average}}
adapters:
  - {{source: {loras["spirit"]}, base: tiny, spirit: true}}
  - source: loras/{loras["ingredient"].name}
    base: tiny
    domain: skin-care
    aliases: [champion]
""")
    return path


def test_a_file_is_planned_applied_and_applied_again(bare: Any, declared: Path) -> None:
    planned = bare("apply", "-f", declared, "--dry-run")
    assert [line[0] for line in planned.out.splitlines()] == ["+"] * 5
    assert bare("domain", "list", "--json").json == []
    document = bare("apply", "-f", declared, "--json").json
    assert (document["counts"], document["dry_run"]) == ({"created": 5}, False)
    assert bare("adapter", "show", "skin-care@champion", "--json").json["version"] == 1
    assert bare("apply", "-f", declared, "--json").json["counts"] == {"unchanged": 5}
    again = bare("apply", "-f", declared)
    assert again.out == ""
    assert "5 unchanged" in again.err


def test_a_gate_is_shown_as_it_is_typed() -> None:
    gate = {"require": {"metric": "NDCG@3", "margin": -0.02}, "approvals": 1}
    assert _value(gate) == "require=(metric=NDCG@3, margin=-0.02), approvals=1"


def test_data_that_domains_share_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    monkeypatch.setattr("reccocktail.trainers.domains.read_domain", lambda folder, _name: read.append(folder))
    check = DomainCheck()
    for name, data in (("beauty", "shop"), ("toys", "shop"), ("games", "arcade")):
        check(name, {"data": data})
    assert read == [Path("shop"), Path("arcade")]


def test_a_failure_is_reported_with_its_line_and_the_rest_is_applied(bare: Any, declared: Path) -> None:
    declared.write_text(declared.read_text().replace("recipe: average", "recipe: avrage"))
    answer = bare("apply", "-f", declared, code=1)
    assert "! domain skin-care (line 4)" in answer.out
    assert [each["ref"] for each in bare("adapter", "list", "--json").json] == ["spirit@v1"]
    declared.write_text(declared.read_text().replace("  - {source", "  - {sorce"))
    failed = bare("apply", "-f", declared, "--json", code=2).json["error"]
    assert "line 6" in failed["message"]
    assert "'source'" in failed["message"]


def test_an_export_is_applied_to_another_home_through_a_pipe(
    bare: Any, declared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare("apply", "-f", declared)
    copy = Shell(tmp_path / "copy", tmp_path / "work")
    copy("init")
    text = bare("export").out
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    assert copy("apply", "-f", "-", "--json").json["counts"] == {"created": 5}
    assert copy("export").out.count("digest") == text.count("digest")
    there, here = (
        [{key: each[key] for key in ("ref", "digest", "aliases")} for each in run("adapter", "list", "--json").json]
        for run in (copy, bare)
    )
    assert there == here
    assert json.loads(bare("export", "--json").out)["adapters"]


def test_an_export_says_that_aliases_of_builds_are_not_in_it(built: Any) -> None:
    with built.registry() as registry:
        (served,) = registry.serving.served("skin-care")
        left_out = len(registry.serving.aliases())
    assert f"aliases and pins of builds, of which there are {left_out}," in built("export").err
    built("build", "pin", served.build)
    noted = built("export", "--json")
    assert f"there are {left_out + 1}, are not in the file" in noted.err
    with built.registry() as registry:
        registry.serving.pin(served.build, undo=True)
        for each in registry.serving.aliases():
            registry.serving.remove(f"{each.domain}@{each.alias}")
    assert built("export").err == ""


def test_a_file_that_is_not_there_is_a_mistake_in_the_command(bare: Any) -> None:
    bare("init")
    assert bare("apply", "-f", "nowhere.yaml", "--json", code=2).json["error"]["code"] == "usage"


def test_a_mistyped_file_or_a_key_that_is_a_section_is_answered_with_what_was_meant(bare: Any) -> None:
    bare("init")
    (bare.folder / "shop.yaml").write_text("domains:\n  beauty: {policy: {require: {metric: MRR}}}\n")
    for name, meant in (("shpo.yaml", "did you mean 'shop.yaml'"), ("shop.yaml", "section 'policies'")):
        assert meant in bare("apply", "-f", name, "--json", code=2).json["error"]["message"]
