"""A registry in a temporary folder, and models and adapters written by hand, byte by byte."""

from __future__ import annotations

import json
import shutil
import sqlite3
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
from reccocktail.registry import Adapter, Base, Registry, Settings
from reccocktail.registry.catalog.registration import Labels
from reccocktail.registry.database import migrate

HIDDEN, OUT = 8, 6
MODULES = {f"model.layers.{layer}.self_attn.{name}": (OUT, HIDDEN) for layer in (0, 1) for name in ("q_proj", "v_proj")}

Tensors = Mapping[str, np.ndarray]


@pytest.fixture(scope="session")
def write_safetensors() -> Callable[..., Path]:
    """(path, tensors, dtypes by name): writes the format as its page describes it, without the library."""

    def write(path: Path, tensors: Tensors, dtypes: Mapping[str, str] | None = None) -> Path:
        names = {"float64": "F64", "float32": "F32", "float16": "F16", "uint16": "BF16"}
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        data = b""
        for name, array in tensors.items():
            dtype = (dtypes or {}).get(name, names[str(array.dtype)])
            offsets = [len(data), len(data) + array.nbytes]
            header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": offsets}
            data += array.tobytes()
        raw = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(raw)) + raw + data)
        return path

    return write


@pytest.fixture(scope="session")
def make_base(write_safetensors: Callable[..., Path]) -> Callable[..., Path]:
    """(folder, seed, config): a model of two layers with what a Hub repo has around the weights."""

    def make(folder: Path, *, seed: int = 0, config: Mapping[str, Any] | None = None) -> Path:
        folder.mkdir(parents=True)
        random = np.random.default_rng(seed)
        tensors = {"model.embed_tokens.weight": random.normal(size=(10, HIDDEN)).astype("float32")}
        tensors |= {f"{name}.weight": random.normal(size=shape).astype("float32") for name, shape in MODULES.items()}
        tensors["lm_head.weight"] = random.normal(size=(10, HIDDEN)).astype("float32")
        write_safetensors(folder / "model.safetensors", tensors)
        about = {"architectures": ["LlamaForCausalLM"], "tie_word_embeddings": False} | dict(config or {})
        (folder / "config.json").write_text(json.dumps(about))
        (folder / "tokenizer.json").write_text("{}")
        (folder / "README.md").write_text("# tiny\n")
        return folder

    return make


@pytest.fixture(scope="session")
def lora_tensors() -> Callable[..., dict[str, np.ndarray]]:
    """(seed, rank): the factors of every module, under PEFT's names."""

    def tensors(*, seed: int = 0, rank: int = 2) -> dict[str, np.ndarray]:
        random = np.random.default_rng(seed)
        found = {}
        for name, (rows, columns) in MODULES.items():
            prefix = f"base_model.model.{name}"
            found[f"{prefix}.lora_A.weight"] = random.normal(size=(rank, columns)).astype("float32")
            found[f"{prefix}.lora_B.weight"] = random.normal(size=(rows, rank)).astype("float32")
        return found

    return tensors


@pytest.fixture(scope="session")
def make_adapter(
    write_safetensors: Callable[..., Path], lora_tensors: Callable[..., dict[str, np.ndarray]]
) -> Callable[..., Path]:
    """(folder, seed, rank, config, tensors): an adapter of the model that `make_base` makes."""

    def make(
        folder: Path,
        *,
        seed: int = 0,
        rank: int = 2,
        config: Mapping[str, Any] | None = None,
        tensors: Tensors | None = None,
        dtypes: Mapping[str, str] | None = None,
    ) -> Path:
        folder.mkdir(parents=True)
        about = {"peft_type": "LORA", "r": rank, "lora_alpha": 4, "base_model_name_or_path": None, "bias": "none"}
        (folder / "adapter_config.json").write_text(json.dumps(about | dict(config or {})))
        given = lora_tensors(seed=seed, rank=rank) if tensors is None else tensors
        write_safetensors(folder / "adapter_model.safetensors", given, dtypes)
        return folder

    return make


@pytest.fixture(scope="session")
def migrated(postgres: Any) -> str:
    """A database with our tables, to be copied."""
    name = postgres.create()
    migrate.upgrade(postgres.url(name))
    return name


@pytest.fixture(params=["sqlite", "postgresql"])
def dialect(request: pytest.FixtureRequest) -> str:
    """Every test that asks for a registry runs on both databases."""
    return request.param


@pytest.fixture(scope="session")
def open_settings(request: pytest.FixtureRequest) -> Callable[..., AbstractContextManager[Settings]]:
    """(dialect, home, PostgreSQL's template): settings with a database of their own, on PostgreSQL for as long as they last."""

    @contextmanager
    def opened(dialect: str, home: Path, template: str = "") -> Iterator[Settings]:
        if dialect == "sqlite":
            yield Settings.load(home=home, cwd=home.parent, environ={"HOME": str(home.parent)})
            return
        server = request.getfixturevalue("postgres")
        name = server.create(template or request.getfixturevalue("migrated"))
        url = server.url(name)
        yield Settings.load(home=home, database_url=url, cwd=home.parent, environ={"HOME": str(home.parent)})
        server.drop(name)

    return opened


@pytest.fixture
def settings(dialect: str, open_settings: Callable[..., Any], tmp_path: Path) -> Iterator[Settings]:
    """Settings of a registry that is still to be created; PostgreSQL has the tables already, which saves time."""
    with open_settings(dialect, tmp_path / "home") as found:
        yield found


@pytest.fixture
def untouched(dialect: str, open_settings: Callable[..., Any], tmp_path: Path) -> Iterator[Settings]:
    """Settings of a registry of which nothing is there; on PostgreSQL an empty database."""
    with open_settings(dialect, tmp_path / "untouched", "template0") as found:
        yield found


@pytest.fixture(scope="session")
def empty_home(
    open_settings: Callable[..., Any],
    remove_empty_shards: Callable[[Path], None],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The home of a new registry on SQLite, to be copied, which is quicker than migrating."""
    home = tmp_path_factory.mktemp("empty") / "home"
    with open_settings("sqlite", home) as settings:
        Registry.create(settings).close()
    remove_empty_shards(home)
    return home


@pytest.fixture(scope="session")
def create_registry(empty_home: Path) -> Callable[[Settings], Registry]:
    """(settings): a new registry there, as `Registry.create` leaves it; on PostgreSQL the tables are there already."""

    def create(settings: Settings) -> Registry:
        shutil.copytree(empty_home, settings.home)
        if not settings.database_url.startswith("sqlite"):
            (settings.home / "registry.sqlite").unlink()
        return Registry.open(settings)

    return create


@pytest.fixture
def registry(settings: Settings, create_registry: Callable[[Settings], Registry]) -> Iterator[Registry]:
    with create_registry(settings) as registry:
        yield registry


@pytest.fixture
def base(registry: Registry, make_base: Callable[..., Path], tmp_path: Path) -> Base:
    return registry.bases.add("tiny", make_base(tmp_path / "tiny"), source="org/tiny", revision="c0ffee")


@pytest.fixture
def add(registry: Registry, base: Base, make_adapter: Callable[..., Path], tmp_path: Path) -> Callable[..., Adapter]:
    """(domain or "spirit", seed, options of adapters.add): registers an adapter made from the seed; labels may be given each by its name."""

    def add_one(name: str, seed: int = 0, **options: Any) -> Adapter:
        folder = tmp_path / f"adapter-{seed}"
        if not folder.exists():
            make_adapter(folder, seed=seed)
        place: dict[str, Any] = {"role": "spirit"} if name == "spirit" else {"role": "ingredient", "domain": name}
        labels = Labels(**{each.name: options.pop(each.name) for each in fields(Labels) if each.name in options})
        return registry.adapters.add(folder, labels=labels, **{"base": base} | place | options)

    return add_one


class PlainSql:
    """A plain connection to the registry's database, behind our code's back; every statement is a transaction."""

    refusals = (sqlite3.IntegrityError, psycopg.IntegrityError)

    def __init__(self, settings: Settings) -> None:
        if settings.database_url.startswith("sqlite"):
            self._connection: Any = sqlite3.connect(settings.home / "registry.sqlite", isolation_level=None)
            self._connection.execute("PRAGMA foreign_keys = ON")
        else:
            self._connection = psycopg.connect(settings.database_url, autocommit=True)

    def __call__(self, statement: str) -> list[tuple[Any, ...]]:
        cursor = self._connection.execute(statement)
        return [tuple(row) for row in cursor.fetchall()] if cursor.description else []

    def close(self) -> None:
        self._connection.close()


@pytest.fixture
def just_before_lstat(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path, Callable[[], Any]], list[Any]]:
    """(path, act): somebody else acts once, right before the path is looked at; what came of it, nothing if it never was."""

    def arrange(looked_at: Path, act: Callable[[], Any]) -> list[Any]:
        lstat, done = Path.lstat, list[Any]()

        def look(path: Path) -> Any:
            if path == looked_at and not done:
                done.append(act())
            return lstat(path)

        monkeypatch.setattr(Path, "lstat", look)
        return done

    return arrange


@pytest.fixture(scope="session")
def open_sql() -> type[PlainSql]:
    """(settings): a plain connection."""
    return PlainSql


@pytest.fixture
def sql(registry: Registry) -> Iterator[PlainSql]:
    plain = PlainSql(registry.settings)
    yield plain
    plain.close()
