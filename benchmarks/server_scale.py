"""How long the server takes on 200 domains with 50 versions each and 1,000 builds, asked over HTTP by one client in another process.

Beside each figure stands `/healthz`, the least that any answer takes: it asks nothing of the registry.

    python benchmarks/server_scale.py [--domains N] [--versions N] [--builds N] [--clients N --seconds S]
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx2
from reccocktail.registry import Registry, Settings

LIMITS = {"/": 200, "/api/v1/resolve/domain-7": 5}  # milliseconds: p95 of pages, p50 of `resolve`
PORT = 18399
PAGES = ("/",)
API = (
    "/api/v1/resolve/domain-7", "/api/v1/resolve/domain-7@champion", "/api/v1/adapters/domain-7@v3", "/api/v1/adapters", "/api/v1/builds",
    "/api/v1/events", "/api/v1/evaluations", "/api/v1/domains", "/api/v1/status",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--domains", type=int, default=200)
    parser.add_argument("--versions", type=int, default=50, help="per domain")
    parser.add_argument("--builds", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=0, help="so many who move one alias at once, for --seconds")
    parser.add_argument("--seconds", type=float, default=20)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="reccocktail-bench-") as name:
        folder = Path(name)
        settings = Settings.load(home=folder / "home", cwd=folder, environ={"HOME": name})
        with Registry.create(settings, actor="bench") as registry:
            fill(registry, folder, options)
        command = [str(Path(sys.executable).with_name("reccocktail")), "--home", str(settings.home), "server"]
        process = subprocess.Popen([*command, "--port", str(PORT)], stderr=subprocess.PIPE, text=True)
        try:
            assert process.stderr is not None
            print(process.stderr.readline().strip())
            missed = ask()
            if options.clients:
                crowd(options.clients, options.seconds)
        finally:
            process.terminate()
            process.wait()
    print("\nall figures reached" if not missed else f"\nNOT REACHED: {', '.join(missed)}")
    sys.exit(bool(missed))


def fill(registry: Registry, folder: Path, options: Any) -> None:
    """As `registry_scale.py` does, and builds until there are as many as are wanted."""
    spec = importlib.util.spec_from_file_location("registry_scale", Path(__file__).with_name("registry_scale.py"))
    assert spec
    assert spec.loader
    scale = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(scale)
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


def ask() -> list[str]:
    """The figures, printed; which were missed."""
    missed = []
    print(f"{'address':38} {'p50 ms':>9} {'p95 ms':>9} {'x healthz':>10} {'limit ms':>9} {'bytes':>9}")
    least = 1.0
    with httpx2.Client(
        base_url=f"http://127.0.0.1:{PORT}", headers={"Accept": "text/html, */*"}, timeout=120
    ) as client:
        for path in ("/healthz", *API, *PAGES):
            client.get(path)  # warm
            taken, size = [], 0
            for _ in range(20 if path in ("/", "/api/v1/status") else 100):
                started = time.perf_counter()
                answer = client.get(path)
                taken.append(1000 * (time.perf_counter() - started))
                assert answer.status_code == 200, answer.text
                size = len(answer.content)
            p50, p95 = statistics.median(taken), sorted(taken)[int(len(taken) * 0.95) - 1]
            least = p50 if path == "/healthz" else least
            limit = LIMITS.get(path)
            if limit is not None and (p95 if path in PAGES else p50) > limit:
                missed.append(path)
            print(f"{path:38} {p50:9.2f} {p95:9.2f} {p50 / least:10.1f} {limit or '':>9} {size:9}", flush=True)
    return missed


def crowd(clients: int, seconds: float) -> None:
    """Everybody reads an alias and moves it on with what was read: every success is one event, so that none is lost."""
    url = f"http://127.0.0.1:{PORT}/api/v1/domains/domain-0/aliases/shadow"
    httpx2.put(url, json={"ref": "domain-0@v1"}).raise_for_status()
    before = _moves()
    found: Counter[int] = Counter()
    until = time.monotonic() + seconds

    def move() -> None:
        with httpx2.Client(timeout=120) as client:
            while time.monotonic() < until:
                seen = client.get(url)
                number = int(seen.json()["ref"].rpartition("v")[2]) % 50 + 1
                tag = {"If-Match": seen.headers["etag"]}
                found[client.put(url, json={"ref": f"domain-0@v{number}"}, headers=tag).status_code] += 1

    threads = [threading.Thread(target=move) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(f"\n{clients} clients for {seconds:g} s: {dict(found)}; moves in the log: {_moves() - before}")


def _moves() -> int:
    found, after = 0, None
    while True:
        params = {"kind": "alias.moved", "limit": 1000} | ({"after": after} if after else {})
        page = httpx2.get(f"http://127.0.0.1:{PORT}/api/v1/events", params=params, timeout=120).json()
        found += sum(each["subject"] == "domain-0@shadow" for each in page["items"])
        if (after := page["next"]) is None:
            return found


if __name__ == "__main__":
    main()
