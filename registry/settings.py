"""Where the registry lives: settings from options, the environment and two configuration files."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TypedDict, Unpack
from urllib.parse import unquote, urlsplit

from .errors import UsageError
from .ownership import foreign, private_folder
from .strict_json import WRITTEN_LIMIT, parse_written, regular_bytes

NOT_A_URL = "(not a URL)"
_CONFIDENTIAL = "(?:password|passwd|token|secret|key)"
KEYS = ("home", "database_url", "store_url", "device", "cache_limit", "store_shared")
FILE = "reccocktail.toml"
_PLAIN_DEVICE = re.compile(r"auto|cpu|mps|cuda(:\d+)?")
OTHERWISE = ", or set the same in ~/.config/reccocktail/config.toml; otherwise run the command in another folder"
_UNITS = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3, "t": 1000**4} | {
    f"{unit}i": 1024**power for power, unit in enumerate("kmgt", 1)
}


class GivenSettings(TypedDict, total=False):
    """What a caller may set; None means not given."""

    home: str | Path | None
    database_url: str | None
    store_url: str | Path | None
    device: str | None
    cache_limit: str | None
    store_shared: str | None


@dataclass(frozen=True)
class Settings:
    """What every command needs to know. `store_url` is a folder or a URL; `device` is `auto`, `cpu`, `cuda`, …

    `cache_limit` is in bytes, 0 for none: what copies of an object store may take on this machine. Unless `store_shared`, home, database and
    store are made for this user alone. `used` is the working folder's file, where it sets anything, and `given` what.
    """

    home: Path
    database_url: str
    store_url: str
    device: str
    cache_limit: int = 0
    store_shared: bool = False
    used: Path | None = field(default=None, compare=False)
    given: tuple[str, ...] = field(default=(), compare=False)

    @property
    def cache(self) -> Path:
        """Where copies of an object store are kept on this machine."""
        return self.home / "cache" / "store"

    def own_folder(self, name: str) -> Path:
        """The home's folder of this name, made where it is missing: for this user alone, unless the store is shared.

        What cannot be made is reported where it is used.
        """
        folder = self.home / name
        if not self.store_shared and self.home.is_dir():
            with suppress(OSError):
                private_folder(folder)
        return folder

    @property
    def store_folder(self) -> Path | None:
        """Of a store that is a folder."""
        if is_remote(self.store_url):
            return None
        url = self.store_url
        return Path(unquote(urlsplit(url).path)) if url.startswith("file://") else Path(url)

    @classmethod
    def load(
        cls,
        *,
        cwd: Path | None = None,
        environ: Mapping[str, str] | None = None,
        **given: Unpack[GivenSettings],
    ) -> Settings:
        """Most specific first: argument, environment, `reccocktail.toml` in `cwd`, user configuration, default.

        Raises UsageError, also where one of the files may be somebody else's and says where anything is or is sent.
        """
        environ = os.environ if environ is None else environ
        user = Path(environ.get("HOME") or Path.home())
        cwd = cwd or Path.cwd()
        options = {key: given.get(key) for key in KEYS}
        variables = {key: environ.get(f"RECCOCKTAIL_{key.upper()}") for key in KEYS}
        configs = Path(environ.get("XDG_CONFIG_HOME") or user / ".config") / "reccocktail"

        own, of_user = _read(cwd / FILE), _read(configs / "config.toml")
        above = {key for key in KEYS if options[key] or variables[key]}
        _refuse_foreign(cwd / FILE, {key: value for key, value in own.items() if key not in above})
        above |= own.keys()
        _refuse_foreign(
            configs / "config.toml", {key: value for key, value in of_user.items() if key not in above}, or_root=True
        )
        values: dict[str, str] = {}
        for found, folder in (
            (of_user, configs),
            (own, cwd),
            (variables, cwd),
            (options, cwd),
        ):
            written = {key: str(value) for key, value in found.items() if value}
            if "store_url" in written:
                written["store_url"] = _checked_store(written["store_url"])
            # a relative path means: relative to where it was written
            for key in written.keys() & {"home", "store_url"}:
                if "://" not in written[key]:
                    written[key] = os.path.normpath(folder.absolute() / _expanded(written[key], user))
            values |= written

        place = Path(values.get("home") or user / ".reccocktail")
        return cls(
            home=place,
            database_url=values.get("database_url") or _sqlite_url(place / "registry.sqlite"),
            store_url=values.get("store_url") or str(place / "store"),
            device=values.get("device") or "auto",
            cache_limit=_bytes(values.get("cache_limit") or "0"),
            store_shared=_yes(values.get("store_shared") or "no"),
            used=cwd / FILE if own else None,
            given=tuple(own),
        )


def _checked_store(text: str) -> str:
    """The folder or URL. Raises UsageError for a URL without its `//`, which would be taken for a folder here."""
    text = re.sub(r"^file:/(?!/)", "file:///", text)
    if found := re.match(r"[A-Za-z][A-Za-z0-9+.-]+:(?!//)", text):
        # what follows is not repeated: it may be a secret
        raise UsageError(
            f"a store_url that begins with {found[0]!r} is neither a folder nor a URL",
            hint=f"write {found[0]}//… for a URL, or ./{found[0]}… for a folder of that name",
        )
    return text


def _refuse_foreign(path: Path, given: Mapping[str, str], *, or_root: bool = False) -> None:
    """Raises UsageError where a file that may be somebody else's would say where secrets and data go, or which code is loaded."""
    if not given:
        return
    harmless = {"cache_limit"} | ({"device"} if _PLAIN_DEVICE.fullmatch(given.get("device", "")) else set())
    try:
        why = foreign(path, or_root=or_root)
    except OSError as error:
        why = f"{path} cannot be looked at: {error.strerror}"
    if why is not None and (setting := sorted(given.keys() - harmless)):
        raise UsageError(
            f"{path} sets {', '.join(setting)} and can be changed by others: {why}",
            hint="to use it, own the file and its folder and run `chmod go-w` on both"
            + ("; otherwise remove it, or set XDG_CONFIG_HOME" if or_root else OTHERWISE),
        )


def _yes(text: str) -> bool:
    """Raises UsageError for what is neither yes nor no."""
    answer = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
    if text.strip().lower() not in answer:
        raise UsageError(f"a store_shared of {text!r} is neither yes nor no", hint="write true or false")
    return answer[text.strip().lower()]


def _bytes(text: str) -> int:
    """Of `50GB`, `1.5 TB`, `800MiB`, or `0`. Raises UsageError, also for a number that does not say of what."""
    found = re.fullmatch(r"(\d{1,15}(?:\.\d{1,15})?) *((?:[kmgt]i?)?)b", text.strip().lower(), re.ASCII)
    if not found and text.strip() != "0":
        raise UsageError(
            f"a cache_limit of {text!r} is not a size", hint="write, for example, 50GB or 800MiB, or 0 for no limit"
        )
    return round(Fraction(found[1]) * _UNITS[found[2]]) if found else 0


def _sqlite_url(path: Path) -> str:
    # SQLAlchemy takes what follows a ? for options, and unquotes the rest; it is too heavy to be asked for the URL here
    return f"sqlite:///{str(path).replace('%', '%25').replace('?', '%3F')}"


def _expanded(path: str, user: Path) -> Path:
    return user / path[2:] if path.startswith("~/") else Path(path)


def _read(path: Path) -> dict[str, str]:
    try:
        values = parse_written(regular_bytes(path, limit=WRITTEN_LIMIT), ".toml")
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read as TOML: {error}") from error
    for key, value in values.items():
        if key not in KEYS:
            raise UsageError(f"{path}: unknown key {key!r}", hint=f"known keys are {', '.join(KEYS)}")
        if key == "store_shared" and isinstance(value, bool):
            values[key] = "yes" if value else "no"
        elif not isinstance(value, str):
            raise UsageError(f"{path}: {key} must be text, not {value!r}")
        elif not value.strip():
            raise UsageError(f"{path}: {key} is empty", hint="give a value, or remove the line")
    return values


def is_remote(store_url: str) -> bool:
    """Whether the store is an object store rather than a folder."""
    return "://" in store_url and not store_url.startswith("file://")


def redacted_url(url: str) -> str:
    """The URL with its password, and anything in the query that looks like a secret, replaced by `***`.

    An absolute path stays as it is. Of other text, and of a path that may hold a secret, nothing is shown.
    """
    if not re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", url):
        plain = re.match(r"/(?!/)", url) and not re.search(rf"(?is):.*@|{_CONFIDENTIAL}[^=/]*=", url)
        return url if plain else NOT_A_URL
    # greedy up to the last @, because people forget to escape the @ in a password
    url = re.sub(r"(?s)(://[^:/@]*):.*@", r"\1:***@", url)
    return re.sub(rf"(?i)([?&][^=&]*{_CONFIDENTIAL}[^=&]*=)[^&#]*", r"\1***", url)
