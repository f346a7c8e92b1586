"""Fixtures that the tests of several packages share."""

from __future__ import annotations

import gc
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import settings

# A busy machine must not fail a test by its clock, and `make test` tries the same examples each time: `make soak` looks for new ones.
settings.register_profile("ours", deadline=None, derandomize=os.environ.get("RECCOCKTAIL_SOAK") != "1")
settings.load_profile("ours")


COLLECTIONS = gc.get_threshold()
gc.set_threshold(100_000)  # while the libraries are imported, which makes a million objects that are never garbage


def _beside(name: str) -> ModuleType:
    """A module of this folder; with `--import-mode=importlib` it is on no search path."""
    spec = importlib.util.spec_from_file_location(f"reccocktail_tests_{name}", Path(__file__).with_name(f"{name}.py"))
    assert spec
    assert spec.loader
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_bi_tunings = _beside("bi_tunings")
_hub_server = _beside("hub_server")
_postgres = _beside("postgres")
_terminal = _beside("terminal")
_tiny = _beside("tiny")
_warm = _beside("warm")
_web_server = _beside("web_server")
_webhook_receiver = _beside("webhook_receiver")

_one_thread = _tiny._one_thread
shop, asked, tokenizer = _tiny.shop, _tiny.asked, _tiny.tokenizer
make_base, base, make_adapter = _tiny.make_base, _tiny.base, _tiny.make_adapter
postgres = _postgres.postgres
make_bundle = _tiny.make_bundle
make_bi_tuning = _bi_tunings.make_bi_tuning
homes, registry, stocked = _tiny.homes, _tiny.registry, _tiny.stocked


@pytest.fixture(scope="session")
def served() -> Any:
    """(application, port): a context in which it is found at an address (tests/web_server.py)."""
    return _web_server.served


@pytest.fixture
def serve() -> Iterator[Callable[[Any], str]]:
    """(application): the address at which a browser or another client finds it."""
    with ExitStack() as opened:
        yield lambda app: opened.enter_context(_web_server.served(app))


@pytest.fixture
def receiver() -> Iterator[Any]:
    """A `Receiver` (tests/webhook_receiver.py) on loopback; its secret is `receiver.secret`."""
    found = _webhook_receiver.Receiver()
    yield found
    found.close()


@pytest.fixture(scope="session")
def remove_empty_shards() -> Callable[[Path], None]:
    return _tiny.remove_empty_shards


@pytest.fixture
def on_terminal() -> type:
    """The installed command on a pseudo-terminal (tests/terminal.py)."""
    return _terminal.Terminal


@pytest.fixture(scope="session")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A `Warm` (tests/warm.py): starts processes that have the heavy libraries imported already."""
    ours = tmp_path_factory.getbasetemp()
    shared = ours.parent if "PYTEST_XDIST_WORKER" in os.environ else ours
    warm = _warm.Warm(shared / "warm.socket")
    yield warm
    warm.close()


@pytest.fixture(scope="session")
def on_warm_terminal(warm: Any) -> Callable[..., Any]:
    """As `on_terminal`, for commands that are there at once."""
    return partial(_terminal.Terminal, start=warm.start)


@pytest.fixture
def warm_children(warm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings and workers that this process starts in processes of their own have the heavy libraries imported already."""
    from reccocktail.engine.building import workers
    from reccocktail.trainers import child

    monkeypatch.setattr(child, "subprocess", warm.module())
    monkeypatch.setattr(workers, "subprocess", warm.module(workers.PARENT))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Ray comes last: once it has been in a process, that one must not fork any more, as other tests do."""
    items.sort(key=lambda item: item.get_closest_marker("ray") is not None)


def pytest_collection_finish() -> None:
    """What the imports left is never garbage: without it a collection, one of which each training asks for, takes no half second."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECTIONS)


@pytest.fixture
def loopback_hub(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    """A `LoopbackHub` (tests/hub_server.py). The client in this process and in every child process talks to it alone."""
    from huggingface_hub import constants

    hub = _hub_server.LoopbackHub()
    home = tmp_path_factory.mktemp("hf_home")
    for name in ("HF_HUB_OFFLINE", "HF_HUB_CACHE", "HF_TOKEN_PATH", "HF_OIDC_RESOURCE", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    for name, value in hub.env(home).items():
        monkeypatch.setenv(name, value)
    # huggingface_hub reads the environment once, when it is imported: here that has happened already.
    for name, value in {
        "ENDPOINT": hub.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(home / "hub"),
        "HF_TOKEN_PATH": str(home / "token"),
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_DISABLE_TELEMETRY": True,
        "HF_HUB_OFFLINE": False,
    }.items():
        monkeypatch.setattr(constants, name, value)
    yield hub
    hub.close()
