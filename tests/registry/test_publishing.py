"""`registry.publishing` through the real client against a Hub on the loopback, with faults on the way."""

from __future__ import annotations

import hashlib
import logging
import traceback
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.utils import _http as client
from reccocktail.publishing import upload as publishing
from reccocktail.publishing.plan import PublicationPlan, Published, RemoteHistory, UploadOptions
from reccocktail.registry.artifacts import hub as hub_module
from reccocktail.registry.artifacts.hub import HubUnreachableError, fetch
from reccocktail.registry.errors import ConflictError, HubError, InvalidArtifactError, UsageError

RESULT = {
    "README.md": b"---\nlibrary_name: transformers\n---\n\n# merged\n",
    "config.json": b"{}",
    "model-00001-of-00002.safetensors": b"merged weights " * 1000,
    "model-00002-of-00002.safetensors": b"more weights " * 1000,
    "recipe.json": b"{}",
    "tokenizer.json": b"{} ",
}
SHARD = "model-00002-of-00002.safetensors"
REPO = "cellar/beauty"
TRAILER = "RecCocktail-Build: 7"
UPLOAD, COMMIT = r"PUT /lfs/", r"POST .*/commit/"


@pytest.fixture
def hub(loopback_hub: Any) -> Any:
    return loopback_hub


@pytest.fixture
def result(tmp_path: Path) -> Path:
    folder = tmp_path / "result"
    folder.mkdir()
    for name, data in RESULT.items():
        (folder / name).write_bytes(data)
    return folder


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long was waited between attempts, by the client or by us; nobody really waits."""
    waited: list[float] = []

    def sleep(seconds: float) -> None:
        if seconds:  # the loopback Hub's own
            waited.append(seconds)

    monkeypatch.setattr(client.time, "sleep", sleep)
    return waited


def plan(folder: Path, repo: str = REPO, **options: Any) -> PublicationPlan:
    how = {each.name: options.pop(each.name) for each in fields(UploadOptions) if each.name in options}
    return publishing.plan(folder, repo, UploadOptions(**{"trailer": TRAILER} | how), **options)


def publish(folder: Path, *, message: str = "beauty, build 7", **options: Any) -> Published:
    return publishing.publish(plan(folder, **options), folder, message=message)


def before(published: Published, folder: Path) -> RemoteHistory:
    files = {path.name: sha(path.read_bytes()) for path in folder.iterdir()}
    return RemoteHistory(published.commit, False, files, publishing.ever_published([files]))


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def published_files(hub: Any, revision: str = "main") -> dict[str, bytes]:
    """What lies in the repository, without the file that the Hub itself puts there."""
    return {name: data for name, data in hub.files(REPO, revision).items() if name != ".gitattributes"}


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def fault(hub: Any, pattern: str, **what: Any) -> Any:
    made = type(hub).Fault(pattern, **what)
    hub.faults.append(made)
    return made


# what is sent


def test_a_publication_is_a_private_repository_with_one_commit_and_a_tag(hub, result):
    planned = plan(result, tag="v1")
    assert (planned.repo_exists, planned.parent, planned.private) == (False, None, True)
    assert [(f.path, f.bytes, f.sha256, f.change) for f in planned.files] == [
        (name, len(data), sha(data), "new") for name, data in sorted(RESULT.items())
    ]
    assert planned.bytes == sum(map(len, RESULT.values()))
    assert planned.card == RESULT["README.md"].decode()
    assert hub.repos == {}

    published = publishing.publish(planned, result, message="beauty, build 7")

    assert published.made
    assert hub.private(REPO)
    assert published_files(hub) == RESULT
    assert hub.history(REPO) == ["beauty, build 7", "initial commit"]
    assert hub.descriptions(REPO)[0] == f"{TRAILER}\nRecCocktail-Content: {planned.digest}"
    assert hub.tags(REPO) == {"v1": published.commit} == {"v1": hub.head(REPO)}


def test_a_public_repository_has_to_be_asked_for(hub, result):
    publish(result, private=False)
    assert not hub.private(REPO)


def test_publishing_the_same_content_again_makes_no_commit(hub, result):
    first = publish(result, tag="v1")
    again = publish(result, tag="v1")
    assert (again.commit, again.tag, again.made) == (first.commit, "v1", False)
    assert hub.history(REPO) == ["beauty, build 7", "initial commit"]


def test_of_a_changed_result_only_the_changed_shard_is_uploaded(hub, result):
    first = publish(result)
    sent = len(hub.uploads())
    changed = b"other weights " * 1000
    (result / SHARD).write_bytes(changed)
    planned = plan(result, before=before(first, result))
    assert [file.path for file in planned.uploads] == [SHARD]
    publishing.publish(planned, result, message="second")
    assert hub.uploads()[sent:] == [sha(changed)]
    assert published_files(hub) == RESULT | {SHARD: changed}
    assert published_files(hub, first.commit) == RESULT


def test_a_publication_is_fetched_back_as_it_was(hub, result):
    published = publish(result, tag="v1")
    snapshot = fetch(REPO, revision="v1", kind="base")
    assert snapshot.commit == published.commit
    assert contents(snapshot.folder) == RESULT


def test_files_of_an_earlier_publication_go_and_other_peoples_stay(hub, result):
    first = publish(result)
    hub.add_repo(REPO, hub.files(REPO) | {"cover.png": b"art"}, private=True)
    known = before(first, result)
    (result / SHARD).unlink()
    planned = plan(result, before=known, rebase=True)
    assert (planned.removed, planned.kept) == ((SHARD,), ("cover.png",))
    publishing.publish(planned, result, message="new")
    assert published_files(hub) == {k: v for k, v in RESULT.items() if k != SHARD} | {"cover.png": b"art"}


def test_a_file_that_others_have_removed_already_is_not_removed_again(hub, result):
    first = publish(result)
    known = before(first, result)
    hub.add_repo(REPO, {k: v for k, v in hub.files(REPO).items() if k != "recipe.json"}, private=True)
    (result / "recipe.json").unlink()
    (result / "config.json").write_bytes(b'{"a": 1}')
    assert plan(result, before=known, rebase=True).removed == ()
    publish(result, before=known, rebase=True)
    assert "recipe.json" not in hub.files(REPO)


def test_weights_of_somebody_else_are_neither_removed_nor_served_with_ours(hub, result):
    hub.add_repo(REPO, {"model.safetensors": b"theirs"}, private=True)
    for rebase in (False, True):
        with pytest.raises(ConflictError, match=r"weights .* model\.safetensors; a serving engine"):
            plan(result, rebase=rebase)
    assert hub.files(REPO) == {"model.safetensors": b"theirs"}


def test_what_somebody_else_put_there_is_replaced_only_when_asked(hub, result):
    head = hub.add_repo(REPO, {"README.md": b"# made by hand\n", "LICENSE": b"mine"}, private=True)
    with pytest.raises(ConflictError, match=rf"{head}.*replaced: README\.md") as caught:
        plan(result)
    assert "--rebase" in str(caught.value.hint)
    planned = plan(result, rebase=True)
    assert (planned.replaced, planned.kept) == (("README.md",), ("LICENSE",))
    publishing.publish(planned, result, message="on top")
    assert published_files(hub) == RESULT | {"LICENSE": b"mine"}


ADAPTER = {
    "README.md": b"---\nlibrary_name: peft\n---\n\n# lora\n",
    "adapter_config.json": b"{}",
    "adapter_model.safetensors": b"factors " * 1000,
}


@pytest.mark.parametrize(
    ("ours", "theirs", "said"),
    [
        (ADAPTER, RESULT, r"holds a model \(model-00001-of-00002\.safetensors\), and this is an adapter"),
        (RESULT, ADAPTER, r"holds an adapter \(adapter_config\.json\), and this is a model"),
        (ADAPTER, {"pytorch_model.bin": b"x", "config.json": b"{}"}, "holds a model"),
        (RESULT, {"data/train-00000.parquet": b"rows"}, r"holds a dataset \(data/train-00000\.parquet\)"),
        (ADAPTER, {"README.md": b"# rows", "train.csv": b"a,b"}, "holds a dataset"),
    ],
)
def test_a_repository_that_holds_another_kind_is_refused_unless_all_of_it_is_to_go(hub, tmp_path, ours, theirs, said):
    folder = tmp_path / "ours"
    folder.mkdir()
    for name, data in ours.items():
        (folder / name).write_bytes(data)
    head = hub.add_repo(REPO, theirs | {"cover.png": b"art", ".gitattributes": b""}, private=True)
    for rebase in (False, True):
        with pytest.raises(ConflictError, match=said) as caught:
            plan(folder, rebase=rebase)
        assert "--replace" in str(caught.value.hint)
    assert hub.head(REPO) == head
    planned = plan(folder, replaces=True)
    gone = sorted({*theirs, "cover.png"} - ours.keys())
    assert (planned.removed, planned.foreign, planned.kept) == (tuple(gone), tuple(gone), ())
    publishing.publish(planned, folder, message="anew")
    assert published_files(hub) == ours
    assert hub.files(REPO, head)["cover.png"] == b"art"  # in the history it still is


def test_another_kind_of_our_own_is_refused_as_well(hub, result):
    first = publish(result)
    known = before(first, result)
    for path in result.iterdir():
        path.unlink()
    for name, data in ADAPTER.items():
        (result / name).write_bytes(data)
    for revision in (known.revision, None):
        with pytest.raises(ConflictError, match="holds a model"):
            plan(result, before=replace(known, revision=revision))
    assert hub.head(REPO) == first.commit
    planned = plan(result, before=known, replaces=True)
    assert set(planned.removed) == RESULT.keys() - {"README.md"}
    assert planned.foreign == ()


def test_what_lies_beside_a_publication_of_the_same_kind_is_no_other_kind(hub, result):
    first = publish(result)
    notes = {"notes.md": b"x", "training_args.bin": b"x", "plots/loss.png": b"x"}
    hub.add_repo(REPO, hub.files(REPO) | notes, private=True)
    (result / "config.json").write_bytes(b'{"a": 1}')
    assert set(plan(result, before=before(first, result), rebase=True).kept) == notes.keys()


def test_a_file_of_somebody_else_that_was_kept_once_is_kept_by_the_next_publication_too(hub, result):
    known = before(publish(result), result)
    hub.add_repo(REPO, hub.files(REPO) | {"recipe.json": b"rewritten by hand"}, private=True)
    (result / "recipe.json").unlink()
    second = publish(result, before=known, rebase=True, message="second")
    files = {path.name: sha(path.read_bytes()) for path in result.iterdir()}
    known = RemoteHistory(second.commit, False, files, publishing.ever_published([known.files, files]))
    (result / "config.json").write_bytes(b'{"third": 1}')
    planned = plan(result, before=known)
    assert (planned.removed, planned.kept) == ((), ("recipe.json",))


# a repository that was made for nothing


def test_a_repository_that_was_made_is_removed_when_the_hub_refuses_the_commit(hub, result, waits):
    fault(hub, COMMIT, status=403, message="Forbidden", times=1000)
    told: list[str] = []
    with pytest.raises(HubError):
        publishing.publish(plan(result), result, message="no", notify=told.append)
    assert hub.repos == {}
    assert any("was removed" in line for line in told)


def test_a_repository_with_what_was_uploaded_is_kept_for_the_same_command_and_said(hub, result, waits):
    fault(hub, COMMIT, status=500, times=1000)
    told: list[str] = []
    with pytest.raises(HubError):
        publishing.publish(plan(result), result, message="no", notify=told.append)
    assert hub.history(REPO) == ["initial commit"]
    assert any("keeps what was uploaded" in line for line in told)


def test_a_repository_is_removed_when_it_ends_before_any_byte_was_sent(hub, result, waits):
    fault(hub, r"POST .*/preupload/", status=500, times=1000)
    with pytest.raises(HubError):
        publish(result)
    assert hub.repos == {}


def test_a_repository_that_was_there_or_that_others_have_come_to_is_not_removed(hub, result, waits):
    hub.add_repo(REPO, {".gitattributes": b""}, private=True)
    fault(hub, COMMIT, status=403, message="Forbidden")
    with pytest.raises(HubError):
        publish(result)
    assert REPO in hub.repos
    other = "cellar/other"
    planned = plan(result, other)
    hub.before_commit = lambda: hub.add_repo(other, {"theirs.md": b"x"}, private=True)
    with pytest.raises(HubError):
        publishing.publish(planned, result, message="no")
    assert hub.files(other) == {"theirs.md": b"x"}


def test_one_that_cannot_be_removed_is_named(hub, result, waits):
    fault(hub, COMMIT, status=403, message="Forbidden", times=1000)
    fault(hub, r"DELETE ", status=403, message="Forbidden", times=1000)
    told: list[str] = []
    with pytest.raises(HubError):
        publishing.publish(plan(result), result, message="no", notify=told.append)
    assert any(REPO in line and "could not be removed" in line for line in told)


# a rehearsal fails where the publication would


def test_a_rehearsal_finds_a_tag_that_is_taken_a_login_that_is_none_and_one_that_may_only_read(
    hub, result, monkeypatch
):
    publish(result, tag="v1")
    (result / "config.json").write_bytes(b'{"second": true}')
    planned = plan(result, tag="v1")
    with pytest.raises(ConflictError, match="v1"):
        publishing.rehearse(planned, result)
    fresh = plan(result, "cellar/fresh")
    publishing.rehearse(fresh, result)
    hub.role = "read"
    for attempt in (
        lambda: publishing.rehearse(fresh, result),
        lambda: publishing.publish(fresh, result, message="no"),
    ):
        with pytest.raises(HubError, match="may only read"):
            attempt()
    monkeypatch.delenv("HF_TOKEN")
    for attempt in (
        lambda: publishing.rehearse(fresh, result),
        lambda: publishing.publish(fresh, result, message="no"),
    ):
        with pytest.raises(HubError, match="login"):
            attempt()
    assert set(hub.repos) == {REPO}


def test_a_gitignore_in_the_repository_leaves_nothing_of_ours_out(hub, result):
    hub.add_repo(REPO, {".gitignore": b"*.json\n*.safetensors\n"}, private=True)
    publish(result)
    assert published_files(hub) == RESULT | {".gitignore": b"*.json\n*.safetensors\n"}


# who else was there


def test_a_commit_by_somebody_else_since_ours_is_refused_naming_both(hub, result):
    first = publish(result)
    known = before(first, result)
    theirs = hub.add_repo(REPO, hub.files(REPO) | {"config.json": b'{"theirs": 1}'}, private=True, message="hotfix")
    (result / SHARD).write_bytes(b"newer")
    with pytest.raises(ConflictError) as caught:
        plan(result, before=known)
    assert first.commit in str(caught.value)
    assert theirs in str(caught.value)
    assert "'hotfix'" in str(caught.value)
    assert "--rebase" in str(caught.value.hint)
    assert hub.head(REPO) == theirs
    publish(result, before=known, rebase=True)
    assert published_files(hub) == RESULT | {SHARD: b"newer"}
    assert hub.history(REPO)[:2] == ["beauty, build 7", "hotfix"]


def test_a_head_that_moved_after_the_plan_is_refused_naming_both_commits(hub, result):
    first = publish(result)
    (result / SHARD).write_bytes(b"newer")
    planned = plan(result, before=before(first, result))
    now = hub.add_repo(REPO, hub.files(REPO) | {"cover.png": b"art"}, private=True)
    with pytest.raises(HubError, match=f"{first.commit}.*{now}"):
        publishing.publish(planned, result, message="late")
    assert hub.head(REPO) == now


def test_a_head_that_moves_during_the_upload_is_refused_naming_both_commits(hub, result):
    first = publish(result)
    (result / SHARD).write_bytes(b"newer")
    planned = plan(result, before=before(first, result))
    hub.before_commit = lambda: hub.add_repo(REPO, hub.files(REPO) | {"cover.png": b"art"}, private=True)
    with pytest.raises(HubError) as caught:
        publishing.publish(planned, result, message="late")
    assert first.commit in str(caught.value)
    assert hub.head(REPO) in str(caught.value)
    assert published_files(hub) == RESULT | {"cover.png": b"art"}


def test_a_publication_whose_row_was_never_written_is_recognised(hub, result):
    """As after a kill between the commit and the row: the repository has a commit of ours that no row knows."""
    lost = publish(result)
    again = publish(result, tag="v1")
    assert (again.commit, again.made) == (lost.commit, False)
    assert hub.tags(REPO) == {"v1": lost.commit}


def test_a_tag_stands_at_the_commit_that_has_the_files_not_at_the_newest_that_has_a_row(hub, result):
    """A card that changed was published again, and killed before the row: the newest row is of the commit before."""
    known = replace(before(publish(result), result), same=True)
    (result / "README.md").write_bytes(b"# measured meanwhile\n")
    lost = publish(result, before=known)
    assert lost.commit != known.revision
    again = publish(result, before=known, tag="v2")
    assert (again.commit, again.made) == (lost.commit, False)
    assert hub.tags(REPO) == {"v2": lost.commit}
    assert hub.files(REPO, "v2")["README.md"] == b"# measured meanwhile\n"


def test_a_path_of_ours_with_bytes_of_somebody_else_is_theirs(hub, result):
    first = publish(result)
    known = before(first, result)
    theirs = {"recipe.json": b"rewritten by hand", "config.json": b'{"theirs": 1}'}
    hub.add_repo(REPO, hub.files(REPO) | theirs, private=True)
    (result / "recipe.json").unlink()
    (result / "config.json").write_bytes(b'{"newer": true}')
    (result / "tokenizer.json").unlink()
    planned = plan(result, before=known, rebase=True)
    assert (planned.removed, planned.kept, planned.replaced) == (
        ("tokenizer.json",),
        ("recipe.json",),
        ("config.json",),
    )
    publishing.publish(planned, result, message="on top")
    assert hub.files(REPO)["recipe.json"] == b"rewritten by hand"


def test_a_repository_that_was_deleted_on_the_hub_is_made_and_filled_again(hub, result):
    known = before(publish(result), result)
    del hub.repos[REPO]
    (result / "config.json").write_bytes(b'{"newer": true}')
    published = publish(result, before=known, tag="v2")
    assert published_files(hub) == contents(result)
    assert hub.tags(REPO) == {"v2": published.commit}


def test_a_commit_of_the_same_build_with_an_older_card_counts_as_ours(hub, result):
    publish(result)
    (result / "README.md").write_bytes(b"# measured meanwhile\n")
    assert publish(result).made
    other = {"trailer": "RecCocktail-Build: 8"}
    (result / "README.md").write_bytes(b"# of another build\n")
    with pytest.raises(ConflictError, match="its message is 'RecCocktail-Build: 7'") as caught:
        publish(result, **other)
    assert "publish build 7 again first" in str(caught.value.hint)


def test_a_public_repository_is_not_filled_with_a_private_publication(hub, result):
    hub.add_repo(REPO, {"NOTES.md": b"# open\n"})
    with pytest.raises(ConflictError, match="public"):
        plan(result)
    unseen = plan(result, offline=True)
    with pytest.raises(ConflictError, match="public"):
        publishing.publish(unseen, result, message="no")
    assert hub.history(REPO) == ["add"]


# tags


def test_a_tag_of_another_commit_is_never_moved(hub, result):
    first = publish(result, tag="v1")
    (result / "config.json").write_bytes(b'{"second": true}')
    with pytest.raises(ConflictError, match=f"v1.*{first.commit}"):
        publish(result, tag="v1", before=before(first, result))
    assert hub.tags(REPO) == {"v1": first.commit}
    assert hub.head(REPO) == first.commit


@pytest.mark.parametrize("tag", ["", "v 1", "-x", "a..b/c", "^"])
def test_a_tag_that_git_would_refuse_is_refused_before_any_upload(hub, result, tag):
    with pytest.raises(UsageError):
        plan(result, tag=tag)


# what is refused before anything is sent


def test_a_folder_that_changed_after_the_plan_is_refused(hub, result):
    planned = plan(result)
    (result / "late.json").write_bytes(b"{}")
    with pytest.raises(ConflictError, match="changed"):
        publishing.publish(planned, result, message="no")
    assert hub.repos == {}


def test_bytes_that_are_not_those_of_the_plan_are_never_committed(hub, result):
    planned = plan(result, known={SHARD: sha(b"what the registry knows")})
    with pytest.raises(ConflictError, match=SHARD) as caught:
        publishing.publish(planned, result, message="no")
    assert "store verify" in str(caught.value.hint)
    assert hub.repos == {}
    with pytest.raises(ConflictError, match=SHARD):
        publishing.rehearse(planned, result)


@pytest.mark.parametrize("target", ["/etc/hostname", "config.json", "."])
def test_links_are_refused(hub, result, target):
    (result / "link.json").symlink_to(target)
    with pytest.raises(InvalidArtifactError, match=r"link\.json"):
        plan(result)


def test_a_folder_without_a_card_is_refused(hub, tmp_path):
    with pytest.raises(InvalidArtifactError, match=r"README\.md"):
        plan(tmp_path)


@pytest.mark.parametrize("repo", ["beauty", "a/b/c", "a--b/c", "cellar/", "../x"])
def test_a_name_that_is_not_org_and_name_is_refused(hub, result, repo):
    with pytest.raises(UsageError):
        plan(result, repo)
    assert not hub.requests


def test_broken_metadata_is_refused_before_any_commit(hub, result):
    (result / "README.md").write_bytes(b"---\na: [\n---\n")
    with pytest.raises(HubError, match="Invalid metadata"):
        publish(result)
    assert hub.repos == {}
    with pytest.raises(HubError, match="Invalid metadata"):
        publishing.rehearse(plan(result), result)


def test_a_plan_without_a_reachable_hub_says_so(hub, result, waits):
    hub.close()
    planned = plan(result)
    assert planned.repo_exists is None
    assert str(planned.unreached).startswith("Hub not reached: ")
    assert planned.files
    with pytest.raises(HubUnreachableError):
        publishing.publish(planned, result, message="no")


def test_an_offline_plan_asks_nothing_and_is_compared_when_it_is_carried_out(hub, result):
    first = publish(result)
    asked = len(hub.requests)
    planned = plan(result, offline=True)
    assert planned.repo_exists is None
    assert len(hub.requests) == asked
    assert publishing.publish(planned, result, message="again").commit == first.commit


# faults: the repository is at the old commit or at the new one, and the same again completes

HEALS = {
    "a connection dropped in the middle of a shard": (UPLOAD, {"cut": 5000}),
    "an upload that fails three times": (UPLOAD, {"status": 500, "times": 3}),
    "a commit that fails three times": (COMMIT, {"status": 500, "times": 3}),
    "a connection dropped before the commit": (COMMIT, {"cut": 0}),
    "a commit whose answer is lost": (COMMIT, {"lost": True}),
    "an upload whose answer is lost": (UPLOAD, {"lost": True}),
    "a tag whose answer is lost": (r"POST .*/tag/", {"lost": True}),
    "a tag that fails once": (r"POST .*/tag/", {"status": 503}),
    "a repository whose answer is lost": (r"POST /api/repos/create", {"lost": True}),
    "a repository that fails once": (r"POST /api/repos/create", {"status": 502}),
    "a first look that fails twice": (r"GET /api/models/cellar/beauty", {"status": 503, "times": 2}),
    "a first look that is dropped": (r"GET /api/models/cellar/beauty", {"cut": 0}),
    "a listing that fails once": (r"GET .*/tree/", {"status": 500}),
    "too many uploads": (UPLOAD, {"status": 429, "headers": {"Retry-After": "7"}}),
    "too many commits": (COMMIT, {"status": 429, "headers": {"Retry-After": "7"}}),
}


@pytest.mark.parametrize("name", HEALS)
def test_what_heals_by_itself_is_waited_for(hub, result, waits, name):
    pattern, what = HEALS[name]
    made = fault(hub, pattern, **what)
    published = publish(result, tag="v1")
    assert made.seen == made.times
    assert published_files(hub) == RESULT
    assert hub.history(REPO) == ["beauty, build 7", "initial commit"]
    assert hub.tags(REPO) == {"v1": published.commit} == {"v1": hub.head(REPO)}
    if "headers" in what:
        assert 7 <= max(waits) <= 9


def test_a_slow_server_is_waited_for(hub, result):
    fault(hub, r"/", delay=0.05, times=100)
    assert publish(result, tag="v1").commit == hub.head(REPO)


LASTS = {
    "uploads fail": (UPLOAD, {"status": 500}, "answered 500", "later"),
    "commits fail": (COMMIT, {"status": 503}, "answered 503", "later"),
    "connections drop in the middle of a shard": (UPLOAD, {"cut": 5000}, "no answer from", "network"),
    "the token may not write": (COMMIT, {"status": 403, "message": "Forbidden"}, "may not", "hf auth login"),
    "the token is not known": (COMMIT, {"status": 401, "message": "Invalid username or password."}, "login", "hf auth login"),
    "too many requests for an hour": (COMMIT, {"status": 429, "headers": {"Retry-After": "3600"}}, "429", "3600 seconds"),
    "the storage host is full": (UPLOAD, {"status": 507, "message": "Insufficient Storage"}, "no room", "free storage"),
    "a storage limit is reached": (
        UPLOAD, {"status": 403, "message": "Private repository storage limit reached"}, "no room", "free storage",
    ),
}  # fmt: skip

REFUSALS = {
    "the token may not write",
    "the token is not known",
}  # of which nothing is left: no repository that was made


@pytest.mark.parametrize("name", LASTS)
@pytest.mark.parametrize("second", [False, True], ids=["first", "second"])
def test_what_lasts_leaves_the_old_commit_and_the_same_again_completes(hub, result, waits, name, second):
    pattern, what, said, hint = LASTS[name]
    known = RemoteHistory()
    if second:
        known = before(publish(result, message="first"), result)
        (result / SHARD).write_bytes(b"newer " * 2000)
    old = published_files(hub) if second else {}
    was_there = set(hub.repos)
    fault(hub, pattern, times=1000, **what)
    told: list[str] = []
    with pytest.raises(HubError, match=said) as caught:
        publishing.publish(plan(result, before=known), result, message="new", committed=told.append)
    assert hint in str(caught.value.hint)
    assert told == []
    if name in REFUSALS:
        assert set(hub.repos) == was_there
    if REPO in hub.repos:
        assert published_files(hub) == old
    assert len(waits) < 12
    hub.faults.clear()
    published = publish(result, before=known, tag="v2", message="new")
    assert published_files(hub) == contents(result)
    assert hub.history(REPO) == ["new", *(["first"] if second else []), "initial commit"]
    assert hub.tags(REPO) == {"v2": published.commit}


def test_a_tag_that_cannot_be_set_leaves_the_commit_known_and_is_set_by_the_next_run(hub, result, waits):
    fault(hub, r"POST .*/tag/", status=500, times=1000)
    told: list[str] = []
    with pytest.raises(HubError, match="answered 500"):
        publishing.publish(plan(result, tag="v1"), result, message="new", committed=told.append)
    assert told == [hub.head(REPO)]
    hub.faults.clear()
    again = publish(result, tag="v1", before=replace(before(Published(REPO, told[0], None, True), result), same=True))
    assert (again.commit, again.made, hub.tags(REPO)) == (told[0], False, {"v1": told[0]})


def test_a_commit_that_cannot_be_looked_at_afterwards_is_named_and_recognised_by_the_next_run(hub, result, waits):
    planned = plan(result)
    hub.before_commit = lambda: fault(hub, r"GET .*/tree/", status=500, times=1000)
    with pytest.raises(HubError) as caught:
        publishing.publish(planned, result, message="new")
    assert f"accepted commit {hub.head(REPO)}" in str(caught.value)
    hub.faults.clear()
    hub.before_commit = None
    assert publish(result).commit == hub.head(REPO)
    assert hub.history(REPO) == ["new", "initial commit"]


def test_shards_that_had_arrived_before_a_failure_are_not_sent_again(hub, result, waits):
    fault(hub, COMMIT, status=500, times=1000)
    with pytest.raises(HubError):
        publish(result)
    hub.faults.clear()
    sent = len(hub.uploads())
    publish(result)
    assert hub.uploads()[sent:] == []


def test_the_keys_in_a_storage_hosts_urls_are_not_logged(hub, result, waits, caplog):
    logging.getLogger("huggingface_hub").propagate = True
    fault(hub, UPLOAD, status=500, times=2)
    with caplog.at_level(logging.WARNING, logger="huggingface_hub"):
        publish(result)
    assert "HTTP Error 500" in caplog.text
    assert "Amz-Signature" not in caplog.text
    assert hub.token not in caplog.text


@pytest.mark.parametrize("status", [400, 507])
def test_the_keys_in_a_storage_hosts_urls_are_in_no_error_and_no_traceback(hub, result, waits, status):
    """Where the storage host answers without a word of its own, the client's error is its URL."""
    fault(hub, UPLOAD, status=status, message="", times=1000)
    with pytest.raises(HubError) as caught:
        publish(result)
    shown = "".join(traceback.format_exception(caught.value))
    assert f"{status}" in shown or "no room" in shown
    assert "Amz" not in shown


def test_a_password_in_a_url_is_in_no_error(hub):
    with pytest.raises(HubError) as caught, hub_module.explained("look at", REPO):
        raise OSError("no proxy at http://me:secret@proxy:3128/ for http://store/x?X-Amz-Signature=abc now")
    shown = "".join(traceback.format_exception(caught.value))
    assert "no proxy at http://proxy:3128/ for http://store/x?… now" in str(caught.value)
    assert not [secret for secret in ("secret", "abc") if secret in shown.partition("HubError")[2]]


def test_a_connection_that_stays_silent_is_given_up(hub):
    with hub_module.timeouts_and_redaction():
        timeout = client.get_session().timeout
        assert None not in (timeout.connect, timeout.read, timeout.write)
    assert client.get_session().timeout.read is None
