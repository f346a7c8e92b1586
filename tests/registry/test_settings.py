from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reccocktail.registry import Registry
from reccocktail.registry.errors import UsageError
from reccocktail.registry.settings import Settings, redacted_url
from reccocktail.registry.store.atomic import write_whole


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_without_any_setting_everything_is_under_the_users_home(tmp_path: Path) -> None:
    settings = Settings.load(cwd=tmp_path, environ={"HOME": "/home/ann"})
    assert settings == Settings(
        home=Path("/home/ann/.reccocktail"),
        database_url="sqlite:////home/ann/.reccocktail/registry.sqlite",
        store_url="/home/ann/.reccocktail/store",
        device="auto",
    )


@pytest.mark.parametrize("name", ["a?b", "a#b", "a%20b", "a?mode=ro&x%3F", "a b@c"])
def test_the_database_lies_in_the_home_whatever_its_name(tmp_path: Path, name: str) -> None:
    settings = Settings.load(home=tmp_path / name, cwd=tmp_path, environ={"HOME": "/nowhere"})
    Registry.create(settings).close()
    names = {path.name for path in settings.home.iterdir()}
    assert {name.partition("-")[0] for name in names} == {"registry.sqlite", "store"}
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_the_more_specific_setting_wins(tmp_path: Path) -> None:
    environ = {"HOME": str(tmp_path / "ann")}
    load = lambda **options: Settings.load(cwd=tmp_path, environ=environ, **options).device  # noqa: E731
    write(tmp_path / "ann/.config/reccocktail/config.toml", 'device = "user"')
    assert load() == "user"
    write(tmp_path / "reccocktail.toml", 'device = "folder"')
    assert load() == "folder"
    environ["RECCOCKTAIL_DEVICE"] = "environment"
    assert load() == "environment"
    assert load(device="option") == "option"


def test_the_user_configuration_follows_xdg(tmp_path: Path) -> None:
    write(tmp_path / "xdg/reccocktail/config.toml", 'store_url = "s3://bucket/cocktails"')
    environ = {"HOME": "/nowhere", "XDG_CONFIG_HOME": str(tmp_path / "xdg")}
    assert Settings.load(cwd=tmp_path, environ=environ).store_url == "s3://bucket/cocktails"


def test_a_relative_path_is_relative_to_the_file_it_stands_in(tmp_path: Path) -> None:
    write(tmp_path / "reccocktail.toml", 'home = "bar"')
    settings = Settings.load(cwd=tmp_path, environ={"HOME": "/nowhere"})
    assert settings.home == tmp_path / "bar"
    assert settings.store_url == str(tmp_path / "bar/store")


SETTING = {
    "home": "bar",
    "database_url": "postgresql://stranger.example/registry",
    "store_url": "s3://stranger/bucket",
    "device": "privateuseone",
    "store_shared": "yes",
}


def strangers_file(folder: Path, how: str, content: str) -> None:
    """A `reccocktail.toml` that is somebody else's, or could be."""
    folder.mkdir(mode=0o700)
    path = folder / "reccocktail.toml"
    write(path, content)
    path.chmod(0o600)
    match how:
        case "another user's file":
            os.chown(path, 12345, 12345)
        case "another user's folder":
            os.chown(folder, 12345, 12345)
        case "a link to another user's file":
            path.rename(folder.parent / "theirs.toml")
            os.chown(folder.parent / "theirs.toml", 12345, 12345)
            path.symlink_to(folder.parent / "theirs.toml")
        case "another user's link":
            path.rename(folder.parent / "own.toml")
            path.symlink_to(folder.parent / "own.toml")
            os.chown(path, 12345, 12345, follow_symlinks=False)
        case "a file that a group may write":
            path.chmod(0o620)
        case "a folder that all may write":
            folder.chmod(0o707)


WAYS = (
    "another user's file", "another user's folder", "a link to another user's file", "another user's link",
    "a file that a group may write", "a folder that all may write",
)  # fmt: skip


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("key", SETTING)
def test_a_strangers_file_in_the_working_folder_does_not_say_where_anything_is(
    tmp_path: Path, how: str, key: str
) -> None:
    strangers_file(tmp_path / "found", how, f'{key} = "{SETTING[key]}"\n')
    with pytest.raises(UsageError, match=f"sets {key} and can be changed by others") as caught:
        Settings.load(cwd=tmp_path / "found", environ={"HOME": "/nowhere"})
    assert "//stranger" not in str(caught.value)
    # what is set by somebody who may is not looked for there
    above = {"HOME": "/nowhere", f"RECCOCKTAIL_{key.upper()}": "no" if key == "store_shared" else "/own"}
    assert Settings.load(cwd=tmp_path / "found", environ=above).used


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_strangers_file_may_say_what_harms_nobody(tmp_path: Path) -> None:
    strangers_file(tmp_path / "found", "another user's file", 'device = "cuda:1"\ncache_limit = "1GB"\n')
    settings = Settings.load(cwd=tmp_path / "found", environ={"HOME": "/nowhere"})
    assert (settings.device, settings.cache_limit) == ("cuda:1", 10**9)


def test_ones_own_file_is_used_and_named(tmp_path: Path) -> None:
    write(tmp_path / "reccocktail.toml", 'home = "bar"\nstore_shared = true\n')
    settings = Settings.load(cwd=tmp_path, environ={"HOME": "/nowhere"})
    assert (settings.used, settings.given) == (tmp_path / "reccocktail.toml", ("home", "store_shared"))
    assert settings.store_shared
    with pytest.raises(UsageError, match="store_shared of 'perhaps'"):
        Settings.load(cwd=tmp_path, environ={"HOME": "/nowhere", "RECCOCKTAIL_STORE_SHARED": "perhaps"})


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("how", WAYS)
def test_a_strangers_user_configuration_is_refused_as_well(tmp_path: Path, how: str) -> None:
    strangers_file(tmp_path / "reccocktail", how, 'store_url = "s3://stranger/bucket"\n')
    (tmp_path / "reccocktail" / "reccocktail.toml").rename(tmp_path / "reccocktail" / "config.toml")
    environ = {"HOME": "/nowhere", "XDG_CONFIG_HOME": str(tmp_path)}
    with pytest.raises(UsageError, match="sets store_url and can be changed by others"):
        Settings.load(cwd=tmp_path, environ=environ)
    assert Settings.load(cwd=tmp_path, environ=environ | {"RECCOCKTAIL_STORE_URL": "/own"}).store_url == "/own"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_the_administrators_user_configuration_is_as_good_as_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    strangers_file(tmp_path / "reccocktail", "root's", 'device = "cpu"\nhome = "/own"\n')
    (tmp_path / "reccocktail" / "reccocktail.toml").rename(tmp_path / "reccocktail" / "config.toml")
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    assert Settings.load(cwd=tmp_path, environ={"XDG_CONFIG_HOME": str(tmp_path)}).home == Path("/own")


@pytest.mark.parametrize("key", SETTING)
def test_an_empty_setting_is_refused(tmp_path: Path, key: str) -> None:
    write(tmp_path / "reccocktail.toml", f'{key} = ""\n')
    with pytest.raises(UsageError, match=f"{key} is empty"):
        Settings.load(cwd=tmp_path, environ={"HOME": "/nowhere"})


def modes(folder: Path) -> dict[str, int]:
    return {path.name: stat.S_IMODE(path.stat().st_mode) for path in (folder, *folder.iterdir())}


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
@pytest.mark.parametrize("there", [False, True])
def test_home_database_and_store_are_the_users_alone_whatever_the_umask(
    tmp_path: Path, umask: int, there: bool
) -> None:
    before = os.umask(umask)
    try:
        if there:
            (tmp_path / "home").mkdir()
            (tmp_path / "elsewhere").mkdir()
        settings = Settings.load(home=tmp_path / "home", store_url=tmp_path / "elsewhere", cwd=tmp_path, environ={})
        with Registry.create(settings) as registry:
            registry.domains.add("beauty")
            found = modes(settings.home)
    finally:
        os.umask(before)
    assert found["home"] == 0o700
    databases = {name: mode for name, mode in found.items() if name.startswith("registry.sqlite")}
    assert {"registry.sqlite", "registry.sqlite-queue"} <= databases.keys()
    assert {*databases.values()} == {0o600}
    assert stat.S_IMODE((tmp_path / "elsewhere").stat().st_mode) == 0o700


def test_what_is_shared_on_purpose_or_was_there_already_keeps_its_modes(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        shared = Settings.load(home=tmp_path / "shared", store_shared="yes", cwd=tmp_path, environ={})
        Registry.create(shared).close()
        Registry.create(Settings.load(home=tmp_path / "shared", cwd=tmp_path, environ={})).close()
    finally:
        os.umask(before)
    found = modes(tmp_path / "shared")
    assert (found["shared"], found["store"], found["registry.sqlite"]) == (0o755, 0o755, 0o644)
    assert found["registry.sqlite-queue"] == 0o644


@pytest.mark.parametrize(("shared", "mode"), [("no", 0o700), ("yes", 0o755)])
def test_what_commands_keep_in_an_open_home_is_the_users_alone_unless_shared(
    tmp_path: Path, shared: str, mode: int
) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "notes").touch()  # which was there before, and so keeps its mode
    (tmp_path / "home").chmod(0o755)
    before = os.umask(0o022)
    try:
        settings = Settings.load(home=tmp_path / "home", store_shared=shared, cwd=tmp_path, environ={})
        Registry.create(settings).close()
        for name in ("runs", "evaluations", "cache"):
            write_whole(settings.own_folder(name) / "file", "{}")
    finally:
        os.umask(before)
    found = modes(settings.home)
    assert {found[name] for name in ("runs", "evaluations", "cache")} == {mode}


def test_an_unknown_key_is_refused_with_file_and_key(tmp_path: Path) -> None:
    write(tmp_path / "reccocktail.toml", 'databse_url = "x"')
    with pytest.raises(UsageError, match=r"reccocktail\.toml: unknown key 'databse_url'"):
        Settings.load(cwd=tmp_path, environ={"HOME": "/nowhere"})


def test_a_configuration_that_is_not_toml_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "reccocktail.toml", "device = ")
    with pytest.raises(UsageError, match="cannot be read as TOML"):
        Settings.load(cwd=tmp_path, environ={"HOME": "/nowhere"})


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+psycopg://ann:S3CRET@db/rec",
        "postgresql+psycopg://ann:S3CRET@with@at@db/rec",
        "postgresql+psycopg://ann:S3CRET/slash@db/rec",
        "postgresql+psycopg://db/rec?user=ann&password=S3CRET",
        "s3://bucket/x?secret_key=S3CRET&region=eu",
    ],
)
def test_a_redacted_url_does_not_show_the_secret(url: str) -> None:
    assert "S3CRET" not in redacted_url(url)
    assert "***" in redacted_url(url)


@pytest.mark.parametrize(
    "text",
    [
        "host=db password=S3CRET",
        "host=db password=S3CRET sslrootcert=file:///etc/ca",
        "ann:S3CRET@db/r",
        "postgresql:/ann:S3CRET@x",
        "postgresql:ann:S3CRET@x",
        "//ann:S3CRET@db/r",
        "/ann:S3CRET@db/r",
        "/tmp/host=db password=S3CRET",
        " postgresql://ann:S3CRET@db/r",
        "S3CRET",
    ],
)
def test_of_what_is_no_url_nothing_is_shown(text: str) -> None:
    assert redacted_url(text) == "(not a URL)"


@given(st.text(), st.text())
def test_only_absolute_paths_and_urls_are_ever_shown(before: str, after: str) -> None:
    shown = redacted_url(f"{before}:S3CRET@{after}")
    assert "S3CRET" not in shown or re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", before)


@pytest.mark.parametrize(
    "url",
    ["sqlite:////home/ann/r.sqlite", "s3://bucket/x", "/home/ann/a b@c", "/data/year=2026/store", "file:///home/ann/x"],
)
def test_a_url_or_a_path_without_a_secret_stays_as_it_is(url: str) -> None:
    assert redacted_url(url) == url


@pytest.mark.parametrize("url", ["s3:bucket/x", "s3:/bucket/x", "gs:S3CRET", "file:x", "ann:S3CRET@db/r"])
def test_a_store_url_without_its_slashes_is_not_taken_for_a_folder(tmp_path: Path, url: str) -> None:
    with pytest.raises(UsageError, match="neither a folder nor a URL") as caught:
        Settings.load(store_url=url, cwd=tmp_path, environ={"HOME": "/nowhere"})
    assert "://…" in (caught.value.hint or "")
    assert "S3CRET" not in f"{caught.value} {caught.value.hint}"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("file:/srv/store", "file:///srv/store"),
        ("file:///srv/store", "file:///srv/store"),
        ("s3://bucket/x", "s3://bucket/x"),
        ("/srv/a:b", "/srv/a:b"),
        ("./s3:b", "{cwd}/s3:b"),
    ],
)
def test_a_store_url_is_a_folder_or_a_url(tmp_path: Path, text: str, found: str) -> None:
    settings = Settings.load(store_url=text, cwd=tmp_path, environ={"HOME": "/nowhere"})
    assert settings.store_url == found.format(cwd=tmp_path)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        (None, 0),
        ("0", 0),
        ("0GB", 0),
        ("1b", 1),
        ("50GB", 50_000_000_000),
        (" 1.5 tb", 1_500_000_000_000),
        ("800MiB", 800 << 20),
        ("2KiB", 2048),
    ],
)
def test_a_cache_limit_is_a_size(tmp_path: Path, text: str | None, count: int) -> None:
    environ = {"HOME": "/nowhere"} | ({"RECCOCKTAIL_CACHE_LIMIT": text} if text else {})
    assert Settings.load(cwd=tmp_path, environ=environ).cache_limit == count
    write(tmp_path / "reccocktail.toml", f'cache_limit = "{text or 0}"')
    assert Settings.load(cwd=tmp_path, environ={"HOME": "/nowhere"}).cache_limit == count
    assert Settings.load(cache_limit="7B", cwd=tmp_path, environ=environ).cache_limit == 7


@pytest.mark.parametrize("text", ["50", "-1GB", "much", "GB", "1e9B", "50 G", "1,5GB", "٣GB", "9" * 400 + "B"])
def test_a_cache_limit_that_is_not_a_size_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError, match="is not a size") as caught:
        Settings.load(cache_limit=text, cwd=tmp_path, environ={"HOME": "/nowhere"})
    assert "50GB" in (caught.value.hint or "")


def test_importing_the_room_and_its_light_modules_loads_no_heavy_library() -> None:
    code = (
        "import sys, reccocktail.registry, reccocktail.registry.settings, reccocktail.registry.catalog.references;"
        "print(sorted({'torch', 'sqlalchemy', 'alembic', 'numpy', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_the_whole_registry_never_imports_torch() -> None:
    code = "import sys; from reccocktail.registry import Registry; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
