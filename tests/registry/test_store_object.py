"""What a store in a bucket does beyond what every store does: a cache, the network, and secrets that stay secret."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import shutil
import socket
import sys
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from reccocktail.registry import Store
from reccocktail.registry.errors import StoreError
from reccocktail.registry.store import bucket as buckets
from reccocktail.registry.store import create_store, open_store

from .s3 import SECRET, keys, serve

AT_ONCE = timedelta(seconds=-2)
URL = "s3://shop/some/where"


@pytest.fixture(scope="module")
def server() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch, serve(patch) as client:
        yield client


@pytest.fixture
def client(server: Any) -> Any:
    for key in keys(server):
        server.delete_object(Bucket="shop", Key=key)
    return server


@pytest.fixture
def store(client: Any, tmp_path: Path) -> Store:
    return create_store(URL, cache=tmp_path / "cache")


@pytest.fixture
def elsewhere(store: Store, tmp_path: Path) -> Store:
    """The same store, opened on another machine."""
    return open_store(URL, cache=tmp_path / "elsewhere")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "folder"
    (folder / "deep").mkdir(parents=True)
    (folder / "one.txt").write_text("one")
    (folder / "deep/two.txt").write_text("two")
    (folder / "deep/again.txt").write_text("one")
    return folder


def blob_key(text: str) -> str:
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    return f"some/where/blobs/sha256/{sha256[:2]}/{sha256}"


# the cache


def test_what_one_machine_stores_another_one_reads(store: Store, elsewhere: Store, folder: Path) -> None:
    tree = store.add_folder(folder)
    assert elsewhere.local(tree.digest) is None
    assert elsewhere.tree(tree.digest) == tree
    fetched = elsewhere.folder(tree.digest)
    assert (fetched / "deep/again.txt").read_text() == "one"
    assert elsewhere.local(tree.digest) == fetched


def test_what_is_in_the_cache_is_read_without_the_network(
    store: Store, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = store.add_folder(folder)

    def cut(self: buckets.Bucket, key: str) -> None:
        raise AssertionError("asked the network")

    monkeypatch.setattr(buckets.Bucket, "_path", cut)
    assert store.local(tree.digest) == store.folder(tree.digest)
    assert store.tree(tree.digest) == tree


def test_only_what_the_cache_lacks_is_fetched(store: Store, elsewhere: Store, client: Any, folder: Path) -> None:
    elsewhere.folder(store.add_folder(folder, files=["one.txt"]).digest)
    tree = store.add_folder(folder)
    client.delete_object(Bucket="shop", Key=blob_key("one"))
    assert (elsewhere.folder(tree.digest) / "deep/again.txt").read_text() == "one"


def test_a_cache_that_is_thrown_away_is_filled_again(store: Store, folder: Path, tmp_path: Path) -> None:
    tree = store.add_folder(folder)
    shutil.rmtree(tmp_path / "cache")
    again = open_store(URL, cache=tmp_path / "cache")
    assert (again.folder(tree.digest) / "one.txt").read_text() == "one"


def test_damaged_bytes_are_never_handed_out(store: Store, elsewhere: Store, client: Any, folder: Path) -> None:
    tree = store.add_folder(folder)
    client.put_object(Bucket="shop", Key=blob_key("two"), Body=b"owt")
    with pytest.raises(StoreError, match="its bytes hash to") as caught:
        elsewhere.folder(tree.digest)
    assert "store verify" in (caught.value.hint or "")
    client.delete_object(Bucket="shop", Key=blob_key("two"))
    with pytest.raises(StoreError, match="is missing"):
        elsewhere.folder(tree.digest)
    assert elsewhere.local(tree.digest) is None


@pytest.mark.parametrize("whole", [True, False], ids=["verify", "verify_tree"])
def test_verifying_drops_damaged_copies_from_the_cache(store: Store, folder: Path, whole: bool) -> None:
    tree = store.add_folder(folder)
    copy = store.folder(tree.digest) / "one.txt"
    copy.chmod(0o644)
    copy.write_text("eno")
    assert not (store.verify() if whole else store.verify_tree(tree.digest))  # the bucket's bytes are sound
    assert store.local(tree.digest) is None
    assert (store.folder(tree.digest) / "one.txt").read_text() == "one"


def test_gc_drops_copies_of_what_others_removed(store: Store, elsewhere: Store, folder: Path) -> None:
    with store.using(), elsewhere.using():
        tree = store.add_folder(folder)
        elsewhere.folder(tree.digest)
    store.gc(set(), grace=AT_ONCE)
    assert elsewhere.local(tree.digest) is not None
    assert elsewhere.gc(set(), grace=AT_ONCE).trees == ()
    assert elsewhere.local(tree.digest) is None


def test_without_a_given_cache_each_store_has_its_own(
    client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    tree = create_store("s3://shop/a").add_folder(folder)
    assert (tmp_path / "caches/reccocktail") in (open_store("s3://shop/a").folder(tree.digest)).parents
    assert create_store("s3://shop/b").local(tree.digest) is None


# uploading


def test_what_the_bucket_has_is_not_uploaded_again(store: Store, client: Any, folder: Path) -> None:
    store.add_folder(folder, files=["one.txt"])
    before = client.head_object(Bucket="shop", Key=blob_key("one"))["LastModified"]
    time.sleep(1.1)
    store.add_folder(folder)
    assert client.head_object(Bucket="shop", Key=blob_key("one"))["LastModified"] == before


def test_what_is_old_is_uploaded_again_so_that_it_is_young(
    store: Store, client: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.add_folder(folder)
    before = client.head_object(Bucket="shop", Key=blob_key("one"))["LastModified"]
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 13 * 3600)
    time.sleep(1.1)
    store.add_folder(folder)
    assert client.head_object(Bucket="shop", Key=blob_key("one"))["LastModified"] > before


def test_a_tree_appears_only_when_all_its_files_are_there(
    store: Store, client: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(self: buckets.Bucket, key: str, source: Path) -> None:
        raise StoreError("the line is cut")

    with monkeypatch.context() as patched:
        patched.setattr(buckets.Bucket, "upload", lost)
        with pytest.raises(StoreError, match="the line is cut"):
            store.add_folder(folder)
    assert store.digests() == set()
    assert not any("/trees/" in key for key in keys(client))
    assert store.has(store.add_folder(folder).digest)


def test_uploads_of_dead_writers_are_given_up_and_those_of_the_living_are_not(
    store: Store, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.create_multipart_upload(Bucket="shop", Key=blob_key("half"))
    fs, _ = store._bucket._path("")  # pyright: ignore
    call = fs.call_s3

    def begun_now(method: str, **options: Any) -> Any:
        answer = call(method, **options)
        for upload in answer.get("Uploads", ()):
            upload["Initiated"] = datetime.now(UTC)  # moto says 2010, always
        return answer

    with monkeypatch.context() as patched:
        patched.setattr(fs, "call_s3", begun_now)
        store.gc(set())
    assert client.list_multipart_uploads(Bucket="shop").get("Uploads")
    store.gc(set())
    assert not client.list_multipart_uploads(Bucket="shop").get("Uploads")


def test_marks_of_damage_go_when_the_blob_is_sound_again_or_gone(store: Store, client: Any, folder: Path) -> None:
    store.add_folder(folder)
    for text in ("one", "two"):
        client.put_object(Bucket="shop", Key=blob_key(text), Body=text[::-1].encode())
    store.verify()
    assert len([key for key in keys(client) if "/damaged/" in key]) == 2
    client.put_object(Bucket="shop", Key=blob_key("one"), Body=b"one")
    store.verify()
    assert len([key for key in keys(client) if "/damaged/" in key]) == 1
    store.gc(set(), grace=AT_ONCE)
    assert keys(client) == ["some/where/reccocktail-store.json"]


def test_more_than_one_request_may_delete_are_deleted(
    store: Store, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buckets, "BATCH", 2)
    for text in "abcde":
        (folder / "one.txt").write_text(text)
        store.add_folder(folder)
    assert len(store.gc(set(), grace=AT_ONCE).trees) == 5
    assert store.digests() == set()


def test_other_prefixes_of_the_bucket_are_left_alone(store: Store, client: Any, folder: Path) -> None:
    client.put_object(Bucket="shop", Key="some/where-else/trees/x.json", Body=b"{}")
    store.add_folder(folder)
    store.gc(set(), grace=AT_ONCE)
    assert "some/where-else/trees/x.json" in keys(client)


def test_a_manifest_that_leads_out_of_its_tree_is_refused(store: Store, client: Any) -> None:
    manifest = b'{"../../x":{"bytes":1,"sha256":"%s"}}' % (b"0" * 64)
    sha256 = hashlib.sha256(manifest).hexdigest()
    client.put_object(Bucket="shop", Key=f"some/where/trees/{sha256}.json", Body=manifest)
    with pytest.raises(StoreError, match="not a plain relative path"):
        store.folder(f"sha256:{sha256}")


def test_collections_never_take_what_writers_are_putting_in(store: Store, elsewhere: Store, folder: Path) -> None:
    with ThreadPoolExecutor(3) as threads:
        adding = [threads.submit(lambda: [store.add_folder(folder) for _ in range(12)]) for _ in range(3)]
        collected = 0
        while not all(added.done() for added in adding):
            with contextlib.suppress(StoreError):  # writers never stopped long enough
                collected += len(store.gc(set(), grace=AT_ONCE).trees)
            assert elsewhere.verify() == []
        assert len({tree.digest for added in adding for tree in added.result()}) == 1
    assert collected


# failures


def told(error: BaseException) -> str:
    """All that anyone may see of an error."""
    hint = getattr(error, "hint", None) or ""
    return "".join(traceback.format_exception(error)) + hint


@contextlib.contextmanager
def refused_without_secrets(match: str, hint: str, secret: str = SECRET) -> Iterator[None]:
    with pytest.raises(StoreError, match=match) as caught:
        yield
    assert hint in (caught.value.hint or "")
    assert secret not in told(caught.value)


def test_a_server_that_is_down_is_said_so(store: Store, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = store.add_folder(folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    monkeypatch.setattr(store, "_bucket", buckets.Bucket("s3", "shop/some/where"))
    started = time.monotonic()
    for operation in (store.require, store.digests, lambda: store.has(tree.digest), store.verify):
        with refused_without_secrets("the server does not answer", "check the network and AWS_ENDPOINT_URL"):
            operation()
    with refused_without_secrets("the server does not answer", "AWS_ENDPOINT_URL"):
        store.add_folder(folder)
    assert time.monotonic() - started < 2 * buckets.TIMEOUT


def test_a_password_in_the_endpoint_is_not_repeated(
    client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://user:{SECRET}@127.0.0.1:1")
    with refused_without_secrets("cannot be read", "AWS_ENDPOINT_URL"):
        open_store(URL, cache=tmp_path / "cache")


def test_a_server_that_never_answers_is_given_up(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buckets, "TIMEOUT", 1)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        started = time.monotonic()
        with refused_without_secrets("the server does not answer", "AWS_ENDPOINT_URL"):
            open_store(URL, cache=tmp_path / "cache")
        assert time.monotonic() - started < 60


def test_a_bucket_that_does_not_exist_is_said_so(client: Any, tmp_path: Path) -> None:
    with refused_without_secrets("no such bucket", "create the bucket"):
        create_store("s3://warehouse/x", cache=tmp_path / "cache")


@pytest.mark.parametrize("code", ["AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch"])
def test_denied_access_is_said_so(store: Store, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    from botocore.exceptions import ClientError
    from s3fs.errors import translate_boto_error

    def deny(*args: object, **options: object) -> None:
        raise translate_boto_error(ClientError({"Error": {"Code": code, "Message": f"{SECRET}?"}}, "PutObject"))

    fs, _ = store._bucket._path("")  # pyright: ignore
    monkeypatch.setattr(fs, "pipe_file", deny)
    with refused_without_secrets(f"access denied .{code}", "AWS_SECRET_ACCESS_KEY"):
        store.probe()


def test_missing_credentials_are_said_so(client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with refused_without_secrets("access denied .*Credential", "AWS_PROFILE"):
        create_store(URL, cache=tmp_path / "cache")


def test_a_refused_deletion_is_not_passed_over(store: Store, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store.add_folder(folder)
    fs, _ = store._bucket._path("")  # pyright: ignore
    call = fs.call_s3

    def refuse(method: str, **options: Any) -> Any:
        if method == "delete_objects":
            return {"Errors": [{"Code": "AccessDenied", "Message": SECRET}]}
        return call(method, **options)

    monkeypatch.setattr(fs, "call_s3", refuse)
    with refused_without_secrets("access denied", "their permissions on the bucket"):
        store.gc(set(), grace=AT_ONCE)
    assert store.verify() == []


@pytest.mark.parametrize("url", ["http://host/x", "memory://x", "ftp://user:pass-word@host/x", "S4://x", "://x"])
def test_only_known_schemes_are_stores(url: str, tmp_path: Path) -> None:
    with refused_without_secrets("is not supported", "s3://", secret="pass-word"):
        open_store(url, cache=tmp_path)


@pytest.mark.parametrize(
    "url", ["s3://key:pass-word@shop/x", "s3://shop/x?secret=pass-word", "s3://shop#pass-word", "gs://pass-word@shop/x"]
)
def test_credentials_in_the_url_are_refused_and_not_repeated(url: str, tmp_path: Path) -> None:
    with refused_without_secrets("only a bucket and a prefix", "in the environment", secret="pass-word"):
        open_store(url, cache=tmp_path)


@pytest.mark.parametrize("url", ["s3://", "s3:///x", "s3://shop/../x", "s3://key:pass-word/x", "s3://shop/a\nb"])
def test_a_url_without_a_bucket_or_with_strange_parts_is_refused(url: str, tmp_path: Path) -> None:
    with refused_without_secrets("is not a bucket and prefix", "s3://BUCKET/PREFIX", secret="pass-word"):
        open_store(url, cache=tmp_path)


def test_a_missing_driver_is_named_with_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec  # noqa: F401 - its registry remembers drivers

    for name in ("s3fs", "s3fs.core"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "s3", raising=False)
    with pytest.raises(StoreError, match="driver for s3:// is not installed") as caught:
        open_store(URL, cache=tmp_path)
    assert caught.value.hint == "pip install reccocktail[s3]"


def test_no_secret_is_logged(store: Store, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="reccocktail"):
        store.add_folder(folder)
        store.verify()
    assert SECRET not in caplog.text


def test_the_store_works_on_in_a_forked_process(store: Store, folder: Path) -> None:
    import multiprocessing

    tree = store.add_folder(folder)
    queue = multiprocessing.get_context("fork").Queue()
    child = multiprocessing.get_context("fork").Process(target=lambda: queue.put(store.digests()))
    child.start()
    assert queue.get(timeout=120) == {tree.digest}
    child.join(120)
