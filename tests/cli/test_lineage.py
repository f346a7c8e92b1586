"""From an adapter to where it went, and from a build back to the data."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from reccocktail.trainers.plugin import TrainingJob, TrainingResult
from reccocktail.trainers.runs import in_this_process

COMMIT = "1234567890abcdef1234567890abcdef12345678"


def _newest(shell: Any) -> dict[str, Any]:
    return shell("build", "list", "--json").json[0]


# where an adapter went


def test_an_adapter_tells_the_builds_and_publications_it_reached(built: Any, loopback_hub: Any) -> None:
    newest = _newest(built)
    document = built("publish", "skin-care", "--to", "acme/skin-care", "--tag", "v1", "--json").json
    shown = built("adapter", "show", "spirit", "--json").json
    assert [entry["id"] for entry in shown["builds"]] == [b["id"] for b in built("build", "list", "--json").json]
    assert (shown["build_count"], shown["publication_count"]) == (2, 1)
    (published,) = shown["publications"]
    assert (published["repo"], published["revision"], published["tag"]) == (
        "acme/skin-care",
        document["revision"],
        "v1",
    )
    text = built("adapter", "show", "spirit").out
    assert "builds that it is in: 2" in text
    assert newest["id"] in text
    assert "acme/skin-care" in text


def test_an_adapter_that_went_nowhere_says_so(built: Any, loras: dict[str, Path]) -> None:
    built("adapter", "add", loras["newer"], "--base", "tiny", "--domain", "skin-care")
    shown = built("adapter", "show", "skin-care", "--json").json
    assert (shown["builds"], shown["build_count"]) == ([], 0)
    assert (shown["publications"], shown["publication_count"]) == ([], 0)
    assert "builds that it is in: 0" in built("adapter", "show", "skin-care").out


def test_the_builds_of_an_adapter_are_listed_page_by_page(built: Any) -> None:
    first, second = [entry["id"] for entry in built("build", "list", "--adapter", "spirit@v1", "--json").json]
    answer = built("build", "list", "--adapter", "spirit@v1", "--base", "tiny", "--limit", "1")
    assert f"--after {first})" in answer.err
    rest = built("build", "list", "--adapter", "spirit@v1", "--limit", "1", "--after", first, "--json").json
    assert [entry["id"] for entry in rest] == [second]
    assert "--adapter" in built("build", "list", "--base", "tiny", code=2).err


# what went into a build


def test_a_build_tells_what_went_in_down_to_the_data(
    prepared: Any, loras: dict[str, Path], data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(_: object, job: TrainingJob) -> TrainingResult:
        adapter = Path(shutil.copytree(loras["newer"], job.folder / "adapter"))
        tasks = [{"domain": domain.name, "data": domain.digest, "task": "sha256:t"} for domain in job.domains]
        return TrainingResult(adapter, {}, {"tasks": tasks})

    monkeypatch.setattr("reccocktail.trainers.child.in_a_child", lambda _: in_this_process)
    monkeypatch.setattr("reccocktail.trainers.sft.trainer.SftTrainer.train", train)
    prepared("--as", "ann", "train", "skin-care", "-o", "template=pick-one")
    (done,) = prepared("build", "request", "skin-care", "--wait", "--json").json
    lineage = prepared("build", "show", done["id"], "--json").json["lineage"]
    base = prepared("base", "show", "tiny", "--json").json
    assert lineage["base"] == {key: base[key] for key in ("name", "digest", "source", "revision")}
    spirit, ingredient = lineage["adapters"]
    assert (ingredient["ref"], ingredient["trainer"], ingredient["template"]) == ("skin-care@v2", "sft", "pick-one")
    assert ingredient["registered_by"] == "ann"
    assert ingredient["digest"] == done["inputs"]["adapters"][1]["digest"]
    assert ingredient["data"] == [{"domain": "skin-care", "digest": done["inputs"]["data"]["digest"]}]
    assert (spirit["ref"], spirit["trainer"], spirit["data"]) == ("spirit@v1", None, [])
    assert lineage["recipe"] == done["recipe"]
    assert (lineage["data"], lineage["template"]) == (done["inputs"]["data"], done["inputs"]["template"])
    assert lineage["publications"] == []

    text = prepared("build", "show", done["id"]).out
    for fact in (base["digest"], spirit["digest"], ingredient["digest"], ingredient["data"][0]["digest"]):
        assert fact in text
    assert "trainer   sft 0.1.0" in text
    assert "trainer   not recorded" in text
    assert "revision  not recorded" in text


def test_a_build_with_given_coefficients_says_that_no_data_was_used(built: Any, loopback_hub: Any) -> None:
    average = built("build", "list", "--json").json[1]
    done = built("publish", average["id"], "--to", "acme/average", "--json").json
    answer = built("build", "show", average["id"])
    assert "data        not used: the coefficients are given" in answer.out
    assert f"published: acme/average at {done['revision']}" in answer.out
    lineage = built("build", "show", average["id"], "--json").json["lineage"]
    assert lineage["data"] is lineage["template"] is None
    assert [entry["repo"] for entry in lineage["publications"]] == ["acme/average"]


# where an adapter came from


def test_an_mlflow_model_says_its_run_and_keeps_it(prepared: Any, loras: dict[str, Path], tmp_path: Path) -> None:
    model, run = tmp_path / "model", "0" * 31 + "a"
    shutil.copytree(loras["newer"], model / "peft")
    flavor = {"transformers": {"peft_adaptor": "peft", "source_model_name": "tiny"}}
    (model / "MLmodel").write_text(json.dumps({"flavors": flavor, "run_id": run, "mlflow_version": "3.17.0"}))
    answer = prepared("adapter", "add", model, "--base", "tiny", "--domain", "skin-care", "--json")
    assert f"from MLflow: run {run}" in answer.err
    assert answer.json["context"]["mlflow_run"] == run
    (done,) = prepared("build", "request", "skin-care", "--recipe", "ingredient-only", "--wait", "--json").json
    assert f"origin    mlflow_run {run}" in prepared("build", "show", done["id"]).out


def test_an_adapter_of_the_hub_says_its_commit(prepared: Any, loras: dict[str, Path], loopback_hub: Any) -> None:
    files = {path.name: path.read_bytes() for path in loras["newer"].iterdir()}
    commit = loopback_hub.add_repo("acme/lora", files)
    answer = prepared("adapter", "add", "acme/lora", "--base", "tiny", "--domain", "skin-care")
    assert f"from acme/lora on the Hub, commit {commit}" in answer.err


def test_an_adapter_that_is_somewhere_else_is_refused_with_what_to_do(prepared: Any) -> None:
    words = ("adapter", "add", "models:/beauty/3", "--base", "tiny", "--spirit")
    assert "mlflow artifacts download" in prepared(*words, code=2).err
