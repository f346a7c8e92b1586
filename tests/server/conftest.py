"""A server on the stocked registry: asked in this process, or by a browser."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from fastapi.testclient import TestClient
from reccocktail.registry import Registry
from reccocktail.server.app import ServerOptions, create_app

HOST = "http://localhost"
CHROMIUM = shutil.which("chromium")


@pytest.fixture
def open_client() -> Iterator[Callable[..., TestClient]]:
    """(registry, options, headers): a client of a server on that registry, which asks as somebody on this machine does."""
    with ExitStack() as opened:

        def open_one(registry: Registry, options: ServerOptions | None = None, **headers: str) -> TestClient:
            client = TestClient(create_app(registry, options), base_url=HOST, headers=headers, follow_redirects=False)
            return opened.enter_context(client)

        yield open_one


@pytest.fixture
def client(stocked: Registry, open_client: Callable[..., TestClient]) -> TestClient:
    return open_client(stocked)


@pytest.fixture(scope="session")
def oidc_provider() -> ModuleType:
    """tests/server/oidc_provider.py"""
    spec = importlib.util.spec_from_file_location(
        "reccocktail_tests_oidc", Path(__file__).with_name("oidc_provider.py")
    )
    assert spec
    assert spec.loader
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def site(stocked: Registry, serve: Callable[[Any], str]) -> str:
    """The address of a server on the stocked registry."""
    return serve(create_app(stocked))


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Debian's Chromium. Tests that ask for it are left out where there is none."""
    if CHROMIUM is None:
        pytest.skip("no chromium is installed: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        options = {"executable_path": CHROMIUM, "args": ["--no-sandbox", "--disable-gpu"]}
        with closing(playwright.chromium.launch(**options)) as browser:
            yield browser


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A fresh page, in a context of its own, in which no script and no style is ever refused by the page's policy."""
    with closing(browser.new_context()) as context:
        page = context.new_page()
        said = list[str]()
        page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: said.append(str(error)))
        yield page
        assert said == []


@pytest.fixture(scope="session")
def inaccessible() -> Callable[[Any], list[str]]:
    """(page): what axe-core finds in it that is serious or critical."""
    from axe_playwright_python.sync_playwright import Axe

    def look(page: Any) -> list[str]:
        found = Axe().run(page).response["violations"]
        return [
            f"{each['id']}: {each['nodes'][0]['html']}" for each in found if each["impact"] in ("serious", "critical")
        ]

    return look


@pytest.fixture(scope="session")
def shots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shots")
