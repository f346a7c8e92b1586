"""What RecLoRA's parts are worth: the paper's ablations on MovieLens, each trained on the same few rows and asked about the same others.

    python benchmarks/reclora.py DATA --base FOLDER [--home DIR] [--variant NAME …] [--samples 320] [--rows 400] [--history 10] [--seed 42]

DATA is the folder of a domain with ratings, FOLDER that of a language model. Variants: `reclora`; `one-lora`, with the same prompts and
rows, and one meta-LoRA; `shuffled`, whose gates read another row's user, in training and afterwards; `few`, whose recommender learned
from those rows alone; `recent`, which shows the newest rated items instead of the most similar ones; `target-free`, a user's LoRA that
does not depend on the item. With `--spirit FOLDER`, a base spirit as a PEFT LoRA, the last is also mixed with it, as `personalise
--spirit` does, in the shares .2, .4 and .6. DIN and the untrained model stand beside them. A variant that lies in the home already is not trained again,
and one that was interrupted goes on, so the script is simply started again.

Prints ROC AUC, log-loss and accuracy, and each variant's paired differences from `one-lora` and `reclora`, with 95 % intervals from
resampled users.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel
from reccocktail.engine.models import compute_dtype
from reccocktail.networks.bundle import PersonalisedBundle, open_bundle
from reccocktail.networks.din import FrozenDin, train_din
from reccocktail.networks.personalised_scores import score_gated
from reccocktail.tasks import (
    CLICK_METRICS,
    ClickData,
    ClickQuestions,
    ClickRow,
    ClickScores,
    Interval,
    click_data,
    click_question,
    click_questions,
    load_click_template,
    paired_click_difference,
    read_domain,
    summarise_clicks,
)
from reccocktail.tasks.click_scores import score_clicks
from reccocktail.trainers.plugin import TrainingJob
from reccocktail.trainers.reclora import stages
from reccocktail.trainers.reclora.options import RecloraOptions
from reccocktail.trainers.reclora.rows import draw
from transformers import AutoModelForCausalLM, AutoTokenizer

VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "reclora": {},
    "one-lora": {"metas": 1},
    "shuffled": {},
    "few": {},
    "recent": {"retrieval": "recent"},
    "target-free": {"target_dependent": False},
}
COMPARED = ("one-lora", "reclora")
SHARES = (0.2, 0.4, 0.6)  # of the spirit; the rest is the user's LoRA


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--base", type=Path, required=True, help="folder of the language model")
    parser.add_argument("--home", type=Path, default=Path("reclora-study"))
    parser.add_argument("--variant", choices=tuple(VARIANTS), action="append", help="all, unless given")
    parser.add_argument("--spirit", type=Path, help="folder of a base spirit")
    parser.add_argument("--samples", type=int, default=320, help="rows that the LoRAs learn from")
    parser.add_argument("--rows", type=int, default=400, help="of the test part, seeded")
    parser.add_argument("--history", type=int, default=10, help="rated items that a prompt shows")
    parser.add_argument("--split", choices=("user", "time"), default="user")
    parser.add_argument("--micro-batch", type=int, default=4)
    parser.add_argument("--seed", type=int, default=42, help="of rows, order and initialisation")
    asked = parser.parse_args()
    options = RecloraOptions(
        samples=asked.samples, split=asked.split, history=asked.history, batch_size=16, micro_batch=asked.micro_batch,
        validation_rows=0, validate_every=4, seed=asked.seed,
    )  # fmt: skip
    study = Study.of(asked, options)
    found = study.baselines()
    for name in asked.variant or VARIANTS:
        found[name] = study.variant(name)
        show(found)
    for share in SHARES if asked.spirit else ():
        found[f"target-free, {share:g} spirit"] = study.with_spirit(asked.spirit, share)
        show(found)


@dataclass(frozen=True)
class Study:
    """The data, the rows that are asked about, and where results are kept."""

    home: Path
    data: Path
    base: Path
    options: RecloraOptions
    clicks: ClickData
    asked: ClickQuestions

    @classmethod
    def of(cls, asked: argparse.Namespace, options: RecloraOptions) -> Study:
        clicks = click_data(read_domain(asked.data, asked.data.name), options.clicks)
        template = load_click_template(options.template)
        rows = click_questions(clicks, "test", template, limit=asked.rows, seed=42)
        return cls(asked.home / f"{asked.split}-{asked.seed}", asked.data, asked.base, options, clicks, rows)

    def baselines(self) -> dict[str, ClickScores]:
        """DIN on all training rows, and the untrained model."""

        def untrained() -> NDArray[np.float64]:
            model, tokenizer = self.model()
            return score_clicks(model, tokenizer, self.asked.in_words())

        return {
            "din": self.kept("din", lambda: train_din(self.clicks, self.options.din).scores(self.asked.rows)),
            "untrained": self.kept("untrained", untrained),
        }

    def variant(self, name: str) -> ClickScores:
        """Trained unless it is there, then asked."""

        def found() -> NDArray[np.float64]:
            bundle_folder = self.trained(name)
            bundle = open_bundle(bundle_folder)
            model, tokenizer = self.model()
            if name == "shuffled":
                bundle = replace(bundle, recommender=ShuffledDin.load(bundle_folder))
            return scored(model, tokenizer, bundle, self.asked)

        return self.kept(name, found)

    def with_spirit(self, spirit: Path, share: float) -> ClickScores:
        """The target-free variant's user LoRAs at 1 - share, on a model with the spirit at `share`."""

        def found() -> NDArray[np.float64]:
            bundle = open_bundle(self.trained("target-free"))
            model, tokenizer = self.model()
            mixed: Any = PeftModel.from_pretrained(model.float(), spirit)
            for layer in mixed.modules():
                if hasattr(layer, "scale_layer"):
                    layer.scale_layer(share)
            model = mixed.merge_and_unload().to(compute_dtype("cpu")).eval()
            with torch.no_grad():
                for b in bundle.net.b:
                    b.mul_(1 - share)
            return scored(model, tokenizer, bundle, self.asked)

        return self.kept(f"target-free-spirit-{share:g}", found)

    def kept(self, name: str, find: Callable[[], NDArray[np.float64]]) -> ClickScores:
        """The scores of the asked rows, from a file where they are kept already."""
        path = self.home / f"{name}-{len(self.asked.rows)}.npy"
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, find())
        return self.asked.scored(np.load(path))

    def trained(self, name: str) -> Path:
        """The bundle's folder."""
        folder = self.home / name
        if not (folder / stages.ADAPTER / "bundle.json").is_file():
            folder.mkdir(parents=True, exist_ok=True)
            options = self.options.model_copy(update=dict(VARIANTS[name]))
            if name == "few":
                self.learn_from_few(folder / stages.RECOMMENDER, options)
            read_by = ShuffledDin if name == "shuffled" else FrozenDin
            started = time.monotonic()
            with patch.object(stages, "FrozenDin", read_by):
                stages.train(self.job(folder, options), options)
            print(f"{name}: trained in {time.monotonic() - started:.0f} s", flush=True)
        return folder / stages.ADAPTER

    def learn_from_few(self, folder: Path, options: RecloraOptions) -> None:
        """Put a recommender of the drawn rows alone where a training that resumes looks for its own."""
        if not folder.is_dir():
            few = replace(self.clicks, train=draw(self.clicks, options).train)
            train_din(few, options.din).save(folder)

    def job(self, folder: Path, options: RecloraOptions) -> TrainingJob:
        domain = read_domain(self.data, self.data.name)
        return TrainingJob("ingredient", self.base, "base", (domain,), folder, options, True, "cpu", lambda *_: None)

    def model(self) -> tuple[Any, Any]:
        model: Any = AutoModelForCausalLM.from_pretrained(self.base, dtype=compute_dtype("cpu"))
        return model.eval(), AutoTokenizer.from_pretrained(self.base)


class ShuffledDin(FrozenDin):
    """A recommender that confuses the rows that it is asked about together."""

    def user_vectors(self, rows: Sequence[ClickRow]) -> torch.Tensor:
        return super().user_vectors(rows)[torch.randperm(len(rows), generator=torch.Generator().manual_seed(1))]


def scored(model: Any, tokenizer: Any, bundle: PersonalisedBundle, asked: ClickQuestions) -> NDArray[np.float64]:
    """[rows], the probability of a like."""
    questions = [click_question(row, asked.clicks.items, bundle.template, bundle.shown) for row in asked.rows]
    return score_gated(model, tokenizer, questions, bundle.net, bundle.recommender.user_vectors(asked.rows))


def show(found: Mapping[str, ClickScores]) -> None:
    print(f"\n| | {' | '.join(CLICK_METRICS)} | {' | '.join(f'roc_auc minus {name}' for name in COMPARED)} |")
    print("|---|" + "---|" * (len(CLICK_METRICS) + len(COMPARED)))
    for name, scores in found.items():
        cells = [written(each) for each in summarise_clicks(scores).values()]
        cells += [minus(scores, found.get(other)) if name != other else "" for other in COMPARED]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def minus(scores: ClickScores, other: ClickScores | None) -> str:
    return "" if other is None else written(paired_click_difference(scores, other, "roc_auc"), "+")


def written(found: Interval, sign: str = "") -> str:
    return f"{found.mean:{sign}.3f} [{found.low:{sign}.3f}, {found.high:{sign}.3f}]"


if __name__ == "__main__":
    main()
