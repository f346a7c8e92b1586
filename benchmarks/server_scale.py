"""How long the server takes on 200 domains with 50 versions each and 1,000 builds, asked over HTTP by one client in another process.

All pages that its routers have, and the lists of the API. Beside each figure stands `/healthz`, the least that any answer takes: it asks
nothing of the registry. `after an event` are answers right after somebody changed something, which nobody has asked for yet.

    python benchmarks/server_scale.py [--domains N] [--versions N] [--builds N]
        [--database sqlite|postgresql] [--instances N] [--clients N --seconds S]

    python benchmarks/server_scale.py --domains 10 --builds 20 --database postgresql --instances 2 --clients 50 --seconds 60

is the second part: fifty clients of two servers on one PostgreSQL move one alias with `If-Match`, and no move may be lost or fail.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx2
from fastapi.routing import APIRoute
from reccocktail.registry import Registry, Settings
from reccocktail.registry.catalog.evaluations import EvaluationFilter
from reccocktail.server.pages.routers import PAGES

PAGE_MS, RESOLVE_MS = 200, 5  # p95 of pages, p50 of `resolve`
LONGEST = 5.0  # seconds of asking for one address, at most 100 times
PORT = 18399
MANY = "1000000"  # requests per minute
RESOLVE = "/api/v1/resolve/domain-7"
API = (
    RESOLVE, f"{RESOLVE}@champion", f"{RESOLVE}?merged=true", "/api/v1/status", "/api/v1/status?domain=domain-7", "/api/v1/bases",
    "/api/v1/domains", "/api/v1/domains/domain-7/aliases", "/api/v1/domains/domain-7/served", "/api/v1/domains/domain-7/history",
    "/api/v1/recipes", "/api/v1/adapters", "/api/v1/adapters?domain=domain-7", "/api/v1/adapters/domain-7@v3", "/api/v1/builds",
    "/api/v1/builds?domain=domain-7", "/api/v1/events", "/api/v1/events?domain=domain-7", "/api/v1/evaluations",
    "/api/v1/evaluations?domain=domain-7", "/api/v1/publications", "/api/v1/compare?{pair}",
)  # fmt: skip
EXPORT = "/api/v1/export"  # all of the registry in one document
MORE_PAGES = ("/?state=unbuilt", "/domains/spirit", "/domains/domain-7?at=2026-11-01", "/activity?domain=domain-7")
QUERIES = {"/domains/{name}/promote": "?ref=domain-7@v3", "/compare": "?{pair}"}
"""Of pages that are nothing without. `pair` names two evaluations."""
LEFT_OUT = ("/try/", "/login/oidc")  # the answers of models that /try loads, and a login that others run
CHANGED = " after an event"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--domains", type=int, default=200)
    parser.add_argument("--versions", type=int, default=50, help="per domain")
    parser.add_argument("--builds", type=int, default=1000)
    parser.add_argument("--database", choices=["sqlite", "postgresql"], default="sqlite")
    parser.add_argument("--instances", type=int, default=1, help="servers on that one database, for --clients")
    parser.add_argument(
        "--clients", type=int, default=0, help="instead: so many who move one alias at once, for --seconds"
    )
    parser.add_argument("--seconds", type=float, default=20)
    options = parser.parse_args()
    scale = _beside("registry_scale")
    with tempfile.TemporaryDirectory(prefix="reccocktail-bench-") as name, ExitStack() as opened:
        folder = Path(name)
        folder.chmod(0o755)  # PostgreSQL runs as a user of its own
        url = opened.enter_context(scale.database_url(options.database, folder))
        settings = Settings.load(home=folder / "home", database_url=url, cwd=folder, environ={"HOME": name})
        with Registry.create(settings, actor="bench") as registry:
            fill(scale, registry, folder, options)
            values = examples(registry)
        urls = [
            opened.enter_context(serving(settings, folder / f"home-{n}", PORT + n)) for n in range(options.instances)
        ]
        if options.clients:
            missed = crowd(urls, options.clients, options.seconds)
        else:
            changed = (each + CHANGED for each in ("/", "/domains/domain-7", "/api/v1/status"))
            missed = ask(urls[0], [filled(path, values) for path in (*API, EXPORT, *pages(), *MORE_PAGES, *changed)])
    print("\nall figures reached" if not missed else f"\nNOT REACHED: {', '.join(missed)}")
    sys.exit(bool(missed))


def _beside(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def fill(scale: Any, registry: Registry, folder: Path, options: Any) -> None:
    """As `registry_scale.py` does, and builds until there are as many as are wanted."""
    scale.fill(registry, folder, options.domains, options.versions, options.domains * 5)
    digest = registry.bases.get("tiny").digest
    like = registry.builds.list(limit=options.domains)
    for number in range(options.builds - options.domains):
        one = like[number % len(like)]
        row = registry.builds.request(
            one.domain, one.base, f"key-{number}", one.recipe, one.inputs, own_recipe=True
        ).build
        registry.builds.claim("bench", build_id=row.id)
        registry.builds.succeed(row.id, "bench", digest, {"spirit": 0.5, "ingredient": 0.5}, {})
        if one.domain == "domain-7":
            registry.serving.promote(row.id)


@contextmanager
def serving(settings: Settings, home: Path, port: int) -> Iterator[str]:
    """The address of a server, in a home of its own, on that database and store."""
    places = ["--home", home, "--database-url", settings.database_url, "--store-url", settings.store_url]
    command = [Path(sys.executable).with_name("reccocktail"), *places, "server", "--port", str(port)]
    started = time.perf_counter()
    with (home.parent / f"server-{port}.log").open("w+") as log:
        process = subprocess.Popen([*command, "--requests-per-minute", MANY], stderr=log, env=os.environ)
        try:
            url = f"http://127.0.0.1:{port}"
            while not _answers(url):
                assert process.poll() is None, Path(log.name).read_text()
                time.sleep(0.05)
            print(f"{url} answers after {time.perf_counter() - started:.1f} s", flush=True)
            yield url
        finally:
            process.terminate()
            process.wait()


def _answers(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/healthz", timeout=10).status_code == 200
    except httpx2.TransportError:
        return False


def examples(registry: Registry) -> dict[str, str]:
    """What stands for the names in braces of an address."""
    one, other = registry.evaluations.list(EvaluationFilter(domain="domain-7"), limit=2)
    build = registry.builds.list(limit=1)[0].id
    return {"name": "domain-7", "ref": "domain-7@v3", "id": build, "id_": build, "pair": f"a={one.id}&b={other.id}"}


def pages() -> list[str]:
    """The address of every page that the routers have, with names in braces."""
    routes = (route for router in PAGES for route in router.routes if isinstance(route, APIRoute))
    paths = [route.path for route in routes if "GET" in (route.methods or ())]
    return [path + QUERIES.get(path, "") for path in paths if not path.startswith(LEFT_OUT)]


def filled(path: str, values: Mapping[str, str]) -> str:
    if path.startswith("/recipes/"):
        values = {**values, "ref": "default"}
    return re.sub(r"{(\w+)}", lambda found: values.get(found[1], "domain-7"), path)


def ask(url: str, paths: Sequence[str]) -> list[str]:
    """The figures, printed; which were missed."""
    missed = []
    print(f"{'address':48} {'p50 ms':>8} {'p95 ms':>8} {'x healthz':>9} {'limit':>6} {'bytes':>8}")
    least = 1.0
    with httpx2.Client(base_url=url, headers={"Accept": "text/html, */*"}, timeout=120) as client:
        for path in ("/healthz", *paths):
            taken, answer = timed(client, path)
            if answer.status_code != 200:
                print(f"{path:48} NOT MEASURED: it answers {answer.status_code}")
                missed.append(path)
                continue
            p50, p95 = statistics.median(taken), sorted(taken)[int(len(taken) * 0.95) - 1]
            least = p50 if path == "/healthz" else least
            is_api = path.startswith("/api/")
            figure, limit = (p50, RESOLVE_MS) if path == RESOLVE else (p95, None if is_api else PAGE_MS)
            if limit is not None and figure > limit:
                missed.append(path)
            size = len(answer.content)
            print(f"{path:48} {p50:8.2f} {p95:8.2f} {p50 / least:9.1f} {limit or '':>6} {size:8}", flush=True)
    return missed


def timed(client: httpx2.Client, path: str) -> tuple[list[float], httpx2.Response]:
    """Milliseconds of each answer, and the last one."""
    address, is_changed = path.removesuffix(CHANGED), path.endswith(CHANGED)
    answer, taken = client.get(address), list[float]()
    until = time.perf_counter() + LONGEST
    while len(taken) < 5 or (len(taken) < 100 and time.perf_counter() < until):
        if is_changed:
            change = {"note": f"change {len(taken)}"}
            client.patch("/api/v1/adapters/domain-3@v1", json=change).raise_for_status()
        started = time.perf_counter()
        answer = client.get(address)
        taken.append(1000 * (time.perf_counter() - started))
    return taken, answer


def crowd(urls: Sequence[str], clients: int, seconds: float) -> list[str]:
    """Everybody reads an alias and moves it on with what was read: every success is one event, so that none is lost. What failed."""
    alias = "/api/v1/domains/domain-0/aliases/shadow"
    httpx2.put(urls[0] + alias, json={"ref": "domain-0@v1"}, timeout=120).raise_for_status()
    before = _moves(urls[0])
    found: Counter[str] = Counter()
    until = time.monotonic() + seconds

    def move(url: str) -> None:
        with httpx2.Client(base_url=url, timeout=120) as client:
            while time.monotonic() < until:
                try:
                    found[_moved_on(client, alias)] += 1
                except Exception as error:  # noqa: BLE001  counted, and so a failure of the run
                    found[type(error).__name__] += 1

    threads = [threading.Thread(target=move, args=(urls[number % len(urls)],)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    moves = _moves(urls[0]) - before
    print(f"\n{clients} clients of {len(urls)} instances for {seconds:g} s: {dict(found)}; moves in the log: {moves}")
    is_well = {*found} <= {"200", "412"} and moves == found["200"]
    return [] if is_well else ["no lost update, and no error"]


def _moved_on(client: httpx2.Client, alias: str) -> str:
    seen = client.get(alias)
    if seen.status_code != 200:
        return f"GET {seen.status_code}"
    number = int(seen.json()["ref"].rpartition("v")[2]) % 50 + 1
    answer = client.put(alias, json={"ref": f"domain-0@v{number}"}, headers={"If-Match": seen.headers["etag"]})
    return str(answer.status_code)


def _moves(url: str) -> int:
    found, after = 0, None
    while True:
        params = {"kind": "alias.moved", "limit": 1000} | ({"after": after} if after else {})
        page = httpx2.get(f"{url}/api/v1/events", params=params, timeout=120).json()
        found += sum(each["subject"] == "domain-0@shadow" for each in page["items"])
        if (after := page["next"]) is None:
            return found


if __name__ == "__main__":
    main()
