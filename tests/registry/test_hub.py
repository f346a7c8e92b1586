"""`registry.hub` through the real client against a Hub on the loopback."""

from __future__ import annotations

import dataclasses
import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi, constants
from reccocktail.publishing.plan import UploadOptions
from reccocktail.publishing.upload import plan, publish
from reccocktail.registry.artifacts import hub as hub_module
from reccocktail.registry.artifacts.hub import HubUnreachableError, download, fetch
from reccocktail.registry.errors import HubError, InvalidArtifactError, UsageError

BASE = {
    "config.json": b"{}",
    "model.safetensors": b"weights one",
    "tokenizer.json": b"{}",
    "chat_template.jinja": b"{{ messages }}",
    "LICENSE": b"Apache",
    "README.md": b"# base\n",
}
RESULT = {
    "README.md": b"---\nlibrary_name: transformers\n---\n\n# merged\n",
    "config.json": b"{}",
    "model.safetensors": b"merged weights",
    "recipe.json": b"{}",
}
REPO = "cellar/beauty"


@pytest.fixture
def hub(loopback_hub: Any) -> Any:
    return loopback_hub


@pytest.fixture
def result(tmp_path: Path) -> Path:
    return write(tmp_path / "result", RESULT)


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# fetching


def test_a_base_is_fetched_whole_at_the_commit_that_main_is_now(hub):
    commit = hub.add_repo("maker/base", BASE)
    snapshot = fetch("maker/base", kind="base")
    assert (snapshot.repo_id, snapshot.commit) == ("maker/base", commit)
    assert contents(snapshot.folder) == BASE


WITH_PROGRAMS = {
    "handler.py": b"x",
    "lib.so": b"x",
    "LICENSE": b"mit",
    "additional_chat_templates/rag.jinja": b"x",
    "x.py.md": b"",
}


@pytest.mark.parametrize("kind", ["base", "adapter"])
def test_nothing_is_downloaded_that_is_not_kept(hub, kind):
    own = (
        BASE
        if kind == "base"
        else {"adapter_config.json": b"{}", "adapter_model.safetensors": b"w", "vocab.json": b"{}"}
    )
    hub.add_repo("maker/it", own | WITH_PROGRAMS)
    kept = {"LICENSE": b"mit", "additional_chat_templates/rag.jinja": b"x"}
    assert contents(fetch("maker/it", kind=kind).folder) == own | kept


def test_weights_that_are_not_what_the_hub_lists_are_refused_by_name(hub):
    hub.add_repo("maker/base", BASE)
    listed = hashlib.sha256(BASE["model.safetensors"]).hexdigest()
    hub.objects[listed] = b"w" * len(BASE["model.safetensors"])
    with pytest.raises(HubError, match=r"model\.safetensors is not what the Hub lists") as caught:
        fetch("maker/base", kind="base")
    assert listed in str(caught.value)
    with pytest.raises(HubError, match=r"model\.safetensors is not what the Hub lists"):
        download("maker/base")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("way", ["main", "commit", "offline"])
def test_a_file_that_was_changed_in_the_cache_is_refused_by_name(hub, name, way, monkeypatch):
    commit = hub.add_repo("maker/base", BASE)
    blob = (fetch("maker/base", kind="base").folder / name).resolve()
    blob.chmod(0o644)
    blob.write_bytes(b"#" * blob.stat().st_size)
    if way == "offline":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match=f"{name} is not what the Hub lists") as caught:
        fetch("maker/base", revision=commit if way == "commit" else None, kind="base")
    assert str(blob) in str(caught.value.hint)


@pytest.mark.parametrize("commit", ["../../../../evil", "main", "c0ffee", "g" * 40, "0" * 41, "A" * 40])
@pytest.mark.parametrize("ask", [lambda: fetch("maker/base", kind="base"), lambda: download("maker/base")])
def test_what_the_hub_calls_a_commit_and_is_none_reaches_no_path(hub, commit, ask, tmp_path):
    hub.add_repo("maker/base", BASE)
    repo = hub.repos["maker/base"]
    repo.commits[commit] = dataclasses.replace(repo.commits[repo.branches["main"]], id=commit)
    repo.branches["main"] = commit
    with pytest.raises(HubError, match="40 hexadecimal digits"):
        ask()
    assert not [path for path in tmp_path.rglob("*") if path.name in ("evil", "config.json")]


def test_offline_a_branch_is_what_the_cache_last_saw(hub, monkeypatch):
    commit = hub.add_repo("maker/base", BASE)
    online = fetch("maker/base", kind="base")
    repo = online.folder.parents[1]
    assert online.commit == commit
    hub.close()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert fetch("maker/base", kind="base") == online
    (repo / "refs" / "main").write_text("../../../etc")
    with pytest.raises(HubError, match="40 hexadecimal digits"):
        fetch("maker/base", kind="base")
    for revision in ("../../refs/main", "gone"):
        with pytest.raises(HubUnreachableError):
            fetch("maker/base", revision=revision, kind="base")


def test_offline_a_part_of_a_repository_is_not_taken_for_the_whole(hub, monkeypatch):
    commit = hub.add_repo("maker/base", BASE)
    folder = fetch("maker/base", kind="base").folder
    (folder / "config.json").unlink()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubUnreachableError, match=r"config\.json"):
        fetch("maker/base", revision=commit, kind="base")


def test_an_older_commit_is_still_fetched_after_main_has_moved(hub):
    older = hub.add_repo("maker/base", BASE)
    newer = hub.add_repo("maker/base", BASE | {"model.safetensors": b"weights two"})
    assert contents(fetch("maker/base", revision=older, kind="base").folder)["model.safetensors"] == b"weights one"
    assert fetch("maker/base", kind="base").commit == newer


def test_a_commit_in_the_cache_needs_no_hub(hub):
    commit = hub.add_repo("maker/base", BASE)
    fetch("maker/base", kind="base")
    hub.close()
    assert contents(fetch("maker/base", revision=commit, kind="base").folder) == BASE


def test_weights_for_other_programs_are_left_where_they_are(hub):
    extra = {"onnx/model.safetensors": b"x", "consolidated.safetensors": b"x", "pytorch_model.bin": b"x", "a.py": b"x"}
    hub.add_repo("maker/base", BASE | extra)
    assert contents(fetch("maker/base", kind="base").folder) == BASE


def test_an_adapter_comes_without_its_training_checkpoints(hub):
    adapter = {"adapter_config.json": b"{}", "adapter_model.safetensors": b"w", "README.md": b"# a\n"}
    hub.add_repo("maker/lora", adapter | {"checkpoint-5/adapter_model.safetensors": b"old", "training_args.bin": b"x"})
    assert contents(fetch("maker/lora", kind="adapter").folder) == adapter


def test_a_private_base_is_fetched_with_the_login(hub):
    hub.add_repo("maker/secret", BASE, private=True)
    assert contents(fetch("maker/secret", kind="base").folder) == BASE


@pytest.mark.parametrize(("kind", "pickle"), [("base", "pytorch_model.bin"), ("adapter", "adapter_model.bin")])
def test_a_repository_of_pickles_is_refused_by_name(hub, kind, pickle):
    hub.add_repo("maker/old", {"config.json": b"{}", "adapter_config.json": b"{}", pickle: b"\x80\x04"})
    with pytest.raises(InvalidArtifactError, match=f"only pickled weights: {pickle}"):
        fetch("maker/old", kind=kind)
    assert not any(pickle in request.path for request in hub.requests)


def test_an_unknown_repository_is_named_with_a_hint(hub):
    with pytest.raises(HubError, match="maker/nothing") as caught:
        fetch("maker/nothing", kind="base")
    assert caught.value.hint
    assert "hf auth login" in caught.value.hint


def test_an_unknown_revision_is_named(hub):
    hub.add_repo("maker/base", BASE)
    for revision in ("v9", "0" * 40):
        with pytest.raises(HubError, match=f"no revision '{revision}'"):
            fetch("maker/base", revision=revision, kind="base")


def test_a_gated_repository_says_where_to_ask(hub):
    hub.add_repo("maker/gated", BASE, gated=True)
    with pytest.raises(HubError, match="gated") as caught:
        fetch("maker/gated", kind="base")
    assert f"{hub.url}/maker/gated" in str(caught.value.hint)


def test_a_malformed_name_never_reaches_the_hub(hub):
    with pytest.raises(UsageError, match="a/b/c"):
        fetch("a/b/c", kind="base")
    assert not hub.requests


def test_an_unreachable_hub_and_offline_mode_are_told_apart(hub, monkeypatch):
    hub.close()
    with pytest.raises(HubUnreachableError, match=r"no answer from http://127\.0\.0\.1"):
        fetch("maker/base", kind="base")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubUnreachableError, match="offline mode"):
        fetch("maker/base", kind="base")


# tokens


@pytest.mark.parametrize("token", ["hf_PlantedSecretOfThisTest", "hf_Planted Secret\x00OfThisTest"])
def test_a_refused_token_is_an_error_that_does_not_show_it(hub, result, monkeypatch, token):
    if "\x00" in token:  # no environment can hold it, a token file can
        monkeypatch.delenv("HF_TOKEN")
        Path(constants.HF_TOKEN_PATH).write_text(token)
    else:
        monkeypatch.setenv("HF_TOKEN", token)
    monkeypatch.setattr(hub_module.time, "sleep", lambda _: pytest.fail("no wait heals it"))
    for attempt in (
        lambda: fetch("maker/base", kind="base"),
        lambda: publish(plan(result, REPO, UploadOptions("RecCocktail-Build: 7", offline=True)), result, message="no"),
    ):
        with pytest.raises(HubError) as caught:
            attempt()
        assert "Planted" not in f"{caught.value} {caught.value.hint}"
    assert hub.repos == {}


def test_what_an_error_quotes_is_cleared_of_secrets():
    text = hub_module._line("Illegal header value b'Bearer abcdef'\n for hf_PlantedSecret")
    assert text == "Illegal header value b'[secret] for [secret]"


def test_no_request_carries_the_token_to_the_storage_host(hub):
    hub.add_repo("maker/base", BASE, private=True)
    fetch("maker/base", kind="base")
    stored = [request for request in hub.requests if request.path.startswith("/cdn/")]
    assert stored
    assert not any(request.authorized for request in stored)


def test_a_process_that_knows_the_hub_from_its_environment_alone_shows_no_token(hub, result):
    program = (
        "import sys; from pathlib import Path; from reccocktail.registry.artifacts.hub import fetch\n"
        "from reccocktail.publishing.plan import UploadOptions\n"
        "from reccocktail.publishing.upload import plan, publish\n"
        "folder = Path(sys.argv[1]); planned = plan(folder, 'cellar/beauty', UploadOptions('RecCocktail-Build: 7', tag='v1')); print(planned)\n"
        "print(publish(planned, folder, message='child')); print(fetch('cellar/beauty', revision='v1', kind='base'))\n"
        "fetch('maker/nothing', kind='base')"
    )
    child = subprocess.run([sys.executable, "-c", program, str(result)], capture_output=True, text=True)
    assert "HubError: cannot fetch maker/nothing" in child.stderr
    assert hub.tags(REPO)["v1"] in child.stdout
    assert hub.token not in child.stdout + child.stderr
    assert "%|" not in child.stderr  # progress bars are for terminals


# the server stands for the Hub only as far as the client's other calls agree with it


def test_the_loopback_hub_answers_the_rest_of_the_api(hub):
    commit = hub.add_repo("maker/base", BASE | {"additional_chat_templates/rank.jinja": b"x"})
    api = HfApi()
    assert api.whoami()["name"] == "tester"
    assert api.list_repo_files("maker/base") == sorted([*BASE, "additional_chat_templates/rank.jinja"])
    [weights] = api.get_paths_info("maker/base", "model.safetensors", expand=True)
    assert weights.lfs.size == len(BASE["model.safetensors"])
    assert weights.last_commit.oid == commit
    assert {entry.path for entry in api.list_repo_tree("maker/base")} == {*BASE, "additional_chat_templates"}
    assert api.model_info("maker/base", files_metadata=True).siblings[0].size is not None
    with api_file(api, "maker/base") as file:
        file.seek(3)
        assert file.read(4) == BASE["model.safetensors"][3:7]


def api_file(api: HfApi, repo: str) -> Any:
    from huggingface_hub import HfFileSystem

    return HfFileSystem(endpoint=api.endpoint).open(f"{repo}/model.safetensors", "rb", block_size=4)
