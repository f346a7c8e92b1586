"""The client of an open registry: what `open_registry` answers with."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..registry.closing import Closing

if TYPE_CHECKING:
    from ..engine.evaluation import Evaluation
    from ..engine.recommending import Recommendation
    from ..registry import Adapter, Build, Publication, Registry


class Client(Closing):
    """An open registry. Use it as a context manager, or call `close`. Threads may share one; processes open their own."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def close(self) -> None:
        """Closes the connections to the database."""
        self._registry.close()

    def add_base(self, name: str, folder: str | os.PathLike[str]) -> str:
        """Registers the base model in a folder under a name, and returns the name. An equal one is not added twice.

        Raises InvalidArtifactError for an unusable folder, ConflictError if the name has other weights.
        """
        return self._registry.bases.add(name, Path(folder), source=str(folder)).name

    def add_domain(
        self,
        name: str,
        *,
        title: str | None = None,
        data: str | os.PathLike[str] | None = None,
        recipe: str | None = None,
    ) -> str:
        """Registers a domain, or changes the given fields of one, and returns its name. Raises UsageError, RecipeError.

        `recipe` is the name of one that ships, NAME or NAME@vN of the registry's, or a file, which is read in.
        """
        from ..engine.recipe_book import settle_recipe

        folder = None if data is None else str(Path(data).resolve())
        recipe = recipe and settle_recipe(self._registry, recipe)
        return self._registry.domains.add(name, title=title, data=folder, recipe=recipe).name

    def register_adapter(
        self,
        folder: str | os.PathLike[str],
        *,
        base: str,
        domain: str | None = None,
        metrics: Mapping[str, float] | None = None,
        tags: Sequence[str] = (),
        note: str | None = None,
    ) -> Adapter:
        """Checks a PEFT LoRA folder and registers it as the next version: an ingredient of `domain`, or without one a spirit.

        An adapter whose files are registered already is returned as it is. Raises InvalidArtifactError if the adapter does not
        fit its base model, NotFoundError for an unknown base or domain.
        """
        from ..registry.catalog.registration import Labels

        return self._registry.adapters.add(
            Path(folder),
            base=self._registry.bases.get(base),
            role="spirit" if domain is None else "ingredient",
            domain=domain,
            labels=Labels(metrics or {}, tags, note),
        )

    def resolve(self, reference: str, *, base: str | None = None, kind: str = "lora") -> Adapter:
        """The adapter version that `NAME`, `NAME@vN` or `NAME@ALIAS` means.

        Raises NotFoundError, with the code `wrong_kind` where it means one of another kind (`personalised-lora`), and InvalidReferenceError.
        """
        return self._registry.adapters.resolve(reference, base=base, kind=kind)

    def set_alias(self, reference: str, alias: str) -> None:
        """Sets or moves an alias to the version that `reference` means, `champion` through its domain's gate.

        Raises NotFoundError, and RecCocktailError with the code `gate` where the gate is closed.
        """
        from ..engine.gates import move_champion

        move_champion(self._registry, reference, alias)

    def adapter_folder(self, adapter: Adapter) -> Path:
        """The adapter's files on this machine, fetched if needed. They belong to the store: do not change them."""
        return self._registry.adapters.folder(adapter)

    def request_build(
        self, domain: str, *, recipe: str | None = None, base: str | None = None, force: bool = False
    ) -> Build:
        """Requests a merged build of a domain by a recipe (a name or a file; by default the domain's own) and returns its row.

        An equal build that is queued, running or succeeded is returned unless `force` is set. Raises NotFoundError, RecipeError.
        """
        from ..engine.building.asking import BuildOrder, ask_for_build

        return ask_for_build(self._registry, BuildOrder(domain, recipe, base=base, force=force)).build

    def wait(self, build: Build) -> Build:
        """The finished build: run in this process if no worker has it, else awaited. Raises what the build failed with."""
        from ..engine.building.completion import complete
        from ..engine.models import pick_device

        return complete(self._registry, build, device=pick_device(self._registry.settings.device))

    def build_folder(self, build: Build) -> Path:
        """The merged checkpoint on this machine, fetched if needed. It belongs to the store: do not change it.

        Raises ConflictError if the build has not succeeded, StoreError if its files are missing.
        """
        from ..engine.building.planning import result_folder

        return result_folder(self._registry, build)

    def evaluate(
        self,
        domain: str,
        systems: Sequence[str],
        *,
        score: str | None = None,
        template: str | None = None,
        limit: int | None = None,
        seed: int = 42,
    ) -> list[Evaluation]:
        """Ranks each test user's next item with each system, named as in `reccocktail evaluate`; results are kept and reused.

        `score` is how models rank, as in `--score`; None: as a build was tuned, else by pmi. `limit` takes a random sample of that
        many users. Raises NotFoundError, UsageError, EvaluationError.
        """
        from ..engine.evaluation import DomainEvaluation, evaluate_domain
        from ..engine.models import pick_device
        from ..engine.score_choice import read_score
        from ..tasks import DEFAULT_TEMPLATE

        wanted = DomainEvaluation(
            domain, systems, score=read_score(score), template=template or DEFAULT_TEMPLATE, limit=limit, seed=seed
        )
        found = evaluate_domain(self._registry, wanted, device=pick_device(self._registry.settings.device))
        return list(found.results)

    def recommend(
        self,
        domain: str,
        *,
        user: str | None = None,
        history: Sequence[str] | None = None,
        candidates: Sequence[str] | None = None,
        k: int = 10,
        build: str | None = None,
        adapter: str | None = None,
    ) -> list[Recommendation]:
        """The `k` best items for a user of the domain's data, or after a history of titles, by the build that is served.

        `candidates` are ids or titles; without them as in `reccocktail recommend`. `adapter` is a personalised LoRA or a
        bi-tuning, asked instead of a build. Raises NotFoundError, UsageError, EvaluationError.
        """
        from ..engine.answering import answer
        from ..engine.models import pick_device
        from ..engine.recommending import RecommendationRequest, Recommendations

        wanted = RecommendationRequest(
            domain, user=user, history=history, candidates=candidates, build=build, adapter=adapter
        )
        found = answer(self._registry, wanted, count=k, device=pick_device(self._registry.settings.device))
        return list((found.best if isinstance(found, Recommendations) else found.items)[:k])

    def publish(
        self, subject: str, repo: str, *, private: bool = True, tag: str | None = None, license_id: str | None = None
    ) -> Publication:
        """Publishes a domain's build, a build by its id, or an adapter by its reference to ORG/NAME on the Hub, as one commit.

        Raises ConflictError if the repository holds another kind of artifact or commits by others, HubError if it is unreachable.
        """
        from ..publishing.licenses import parse
        from ..publishing.names import check_names
        from ..publishing.packing import PublishOptions
        from ..publishing.release import find_subject, planned, send

        check_names(repo, tag)
        what, _ = find_subject(self._registry, subject)
        options = PublishOptions(repo, parse(license_id) if license_id else None)
        with planned(self._registry, what, options, private=private, tag=tag) as release:
            return send(self._registry, release)
