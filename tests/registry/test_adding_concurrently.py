"""Many writers at once: versions stay gap-free, a build is claimed once, a database is made once."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

from reccocktail.registry import Adapter, Base, Registry, Settings

WRITERS, EACH = 4, 3


def test_writers_at_once_make_versions_without_gaps(
    registry: Registry, base: Base, make_adapter: Callable[..., Path], tmp_path: Path
) -> None:
    folders = [[make_adapter(tmp_path / f"{w}-{i}", seed=10 * w + i) for i in range(EACH)] for w in range(WRITERS)]
    start = Barrier(WRITERS)

    def write(writer: int) -> list[Adapter]:
        with Registry.open(registry.settings, actor=f"writer-{writer}") as own:
            start.wait()
            return [own.adapters.add(folder, base=base, role="spirit") for folder in folders[writer]]

    with ThreadPoolExecutor(WRITERS) as pool:
        added = [adapter for adapters in pool.map(write, range(WRITERS)) for adapter in adapters]
    assert sorted(adapter.version for adapter in added) == list(range(1, WRITERS * EACH + 1))
    assert {adapter.created_by for adapter in added} == {f"writer-{w}" for w in range(WRITERS)}
    assert registry.adapters.resolve("spirit").version == WRITERS * EACH
    assert registry.store.verify() == []


def test_the_same_adapter_from_all_sides_is_one_version(
    registry: Registry, base: Base, make_adapter: Callable[..., Path], tmp_path: Path
) -> None:
    folder = make_adapter(tmp_path / "a")
    start = Barrier(WRITERS)

    def write(_: int) -> Adapter:
        start.wait()
        return registry.adapters.add(folder, base=base, role="spirit")

    with ThreadPoolExecutor(WRITERS) as pool:
        added = list(pool.map(write, range(WRITERS)))
    assert {adapter.version for adapter in added} == {1}
    assert sum(adapter.created for adapter in added) == 1


def test_each_build_is_claimed_by_one_worker(registry: Registry, base: Base) -> None:
    registry.domains.add("beauty")
    for number in range(WRITERS * EACH):
        registry.builds.request("beauty", base.name, f"key-{number}", {}, {})
    start = Barrier(WRITERS)

    def work(worker: int) -> list[str]:
        start.wait()
        claims = [registry.builds.claim(f"w{worker}") for _ in range(EACH)]
        return [build.id for build in claims if build]

    with ThreadPoolExecutor(WRITERS) as pool:
        claimed = [build for builds in pool.map(work, range(WRITERS)) for build in builds]
    assert len(set(claimed)) == len(claimed) == WRITERS * EACH


def test_a_registry_can_be_created_from_all_sides_at_once(settings: Settings) -> None:
    start = Barrier(WRITERS)

    def create(_: int) -> None:
        start.wait()
        Registry.create(settings).close()

    with ThreadPoolExecutor(WRITERS) as pool:
        list(pool.map(create, range(WRITERS)))
    with Registry.open(settings) as registry:
        assert registry.domains.list() == []
