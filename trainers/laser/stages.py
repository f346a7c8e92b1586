"""What a training of Laser does, one after the other: the recommender, the two stages, the bundle."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...networks.bert4rec import FrozenBert4Rec, train_bert4rec
from ...networks.bi_tuning import BiTuningOrigin, Sides, write_bi_tuning
from ...networks.laser import Laser, LaserConfig, LaserNet, hidden_width, load_frozen
from ...registry.store.files import sync_all
from ...tasks import (
    DomainData,
    Example,
    HistoryTemplate,
    HistoryWriter,
    Item,
    examples,
    load_history_template,
    sample,
    user_digest,
)
from ..plugin import TrainerError, TrainingJob, TrainingResult
from ..runs import base_digest
from ..seeding import seeded
from .checkpoints import Checkpoints
from .learning import NDCG, Learner, Lesson, Trained
from .options import LaserOptions

ADAPTER, RECOMMENDER, CHECKPOINTS, LOG = "adapter", "recommender", "checkpoints", "training_log.jsonl"


def train(job: TrainingJob, options: LaserOptions) -> TrainingResult:
    """With `job.resume` what the run's folder has is taken from there. Raises TrainerError, TaskError."""
    started = time.monotonic()
    task = Task.of(job.domains[0], options)
    if not job.resume:
        for name in (RECOMMENDER, CHECKPOINTS, ADAPTER):
            shutil.rmtree(job.folder / name, ignore_errors=True)
    meter = Meter.of(job, task)
    recommender = trained_recommender(job.folder / RECOMMENDER, task, meter) if options.prefix == "m-former" else None
    laser = _laser(job, task, recommender)
    learner = Learner(laser, task.catalogue, task.lessons, task.exam, options, meter.of_steps)
    trained = learner.run(Checkpoints(job.folder / CHECKPOINTS))
    _write(job, task, laser.net.config, recommender, trained)
    metrics = _metrics(trained) | {"train_seconds": round(time.monotonic() - started, 1)}
    return TrainingResult(job.folder / ADAPTER, metrics, _context(job, task, laser.writer, trained))


@dataclass(frozen=True)
class Task:
    """What is to be learned: the catalogue, how histories are written, and the examples drawn of training and validation targets."""

    options: LaserOptions
    data: DomainData
    template: HistoryTemplate
    catalogue: tuple[Item, ...]
    drawn: tuple[Example, ...]
    validated: tuple[Example, ...]

    @classmethod
    def of(cls, data: DomainData, options: LaserOptions) -> Task:
        """Raises TrainerError where the examples do not fill a batch."""
        there = examples(data, "train")
        drawn = sample(there, min(options.examples or len(there), len(there)), options.seed)
        if len(drawn) < options.batch_size:
            raise TrainerError(
                f"{len(drawn)} training examples of domain {data.name!r} do not fill a batch of {options.batch_size}",
                hint=f"-o batch_size={max(1, len(drawn))}; users need at least 4 interactions to have one",
            )
        validated = sample(examples(data, "validation"), options.validation_examples, options.seed)
        catalogue = tuple(data.items[item_id] for item_id in data.titled)
        template = load_history_template(options.template)
        return cls(options, data, template, catalogue, tuple(drawn), tuple(validated))

    @property
    def lessons(self) -> list[Lesson]:
        return self._lessons(self.drawn)

    @property
    def exam(self) -> list[Lesson]:
        return self._lessons(self.validated)

    @property
    def steps(self) -> int:
        epochs = self.options.stage1_epochs + self.options.stage2_epochs
        return len(self.drawn) // self.options.batch_size * epochs

    def _lessons(self, some: Sequence[Example]) -> list[Lesson]:
        places = {item.item_id: place for place, item in enumerate(self.catalogue)}
        return [Lesson(tuple(self.data.items[i] for i in each.history), places[each.target]) for each in some]


@dataclass(frozen=True)
class Meter:
    """The job's progress, counted in steps; the recommender's training counts as a tenth of them."""

    job: TrainingJob
    recommender: int
    steps: int

    @classmethod
    def of(cls, job: TrainingJob, task: Task) -> Meter:
        return cls(job, task.steps // 10 if task.options.prefix == "m-former" else 0, task.steps)

    def of_recommender(self, done: int, total: int) -> None:
        self.job.progress(
            self.recommender * done // total, self.recommender + self.steps, {"recommender": done / total}
        )

    def of_steps(self, done: int, figures: Mapping[str, float]) -> None:
        self.job.progress(self.recommender + done, self.recommender + self.steps, figures)


def trained_recommender(folder: Path, task: Task, meter: Meter) -> FrozenBert4Rec:
    """BERT4Rec on the training positions, stopped by the validation positions; that of the folder where it is there already."""
    if not folder.is_dir():
        made = train_bert4rec(task.data, "test", task.options.bert4rec, progress=meter.of_recommender)
        half = folder.with_suffix(".half")
        shutil.rmtree(half, ignore_errors=True)
        made.save(half)
        sync_all(half.iterdir())
        half.rename(folder)  # there as a whole or not at all
    return FrozenBert4Rec.load(folder)


def _laser(job: TrainingJob, task: Task, recommender: FrozenBert4Rec | None) -> Laser:
    options = task.options
    model, tokenizer = _load(job, options)
    with seeded(options.seed):
        net = LaserNet.beside(model, options.config(hidden_width(model))).to(job.device)
    eos: Any = tokenizer.eos_token_id
    return Laser(model, HistoryWriter(task.template, tokenizer), net, recommender, eos=eos)


def _load(job: TrainingJob, options: LaserOptions) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Raises TrainerError when there is no such device, for which training would silently be on the CPU."""
    if job.device.startswith("cuda") and not torch.cuda.is_available():
        raise TrainerError(f"there is no device {job.device}", hint="--device cpu, or auto")
    return load_frozen(job.base_folder, job.device, options.dtype)


def _write(
    job: TrainingJob, task: Task, config: LaserConfig, recommender: FrozenBert4Rec | None, trained: Trained
) -> None:
    folder, options = job.folder / ADAPTER, task.options
    shutil.rmtree(folder, ignore_errors=True)
    base, data = base_digest(job.base_folder), (task.data.digest,)
    origin = BiTuningOrigin(base, task.template, options.dtype, options.temperature, options.seed, data)
    sides = Sides(config, trained.item_side, trained.user_side)
    write_bi_tuning(folder, origin, sides, recommender, task.catalogue, trained.matrix)
    (folder / LOG).write_text("".join(json.dumps(entry) + "\n" for entry in trained.course.log), encoding="utf-8")


def _metrics(trained: Trained) -> dict[str, float]:
    losses = [entry["loss"] for entry in trained.course.log if "loss" in entry]
    last = losses[-math.ceil(len(losses) / 10) :]
    found = {"train_loss": round(sum(last) / len(last), 5)}
    return found | ({NDCG: round(trained.course.ndcg, 5)} if trained.course.ndcg >= 0 else {})


def _context(job: TrainingJob, task: Task, writer: HistoryWriter, trained: Trained) -> dict[str, Any]:
    course, options, data = trained.course, task.options, task.data
    about = {"domain": data.name, "data": data.digest}
    stopped_by = examples(data, "validation") if options.prefix == "m-former" else task.validated
    users = sorted({user_digest(example.user_id) for example in stopped_by})
    assert course.items_of is not None
    assert course.users_of is not None
    return {
        "trainer": "laser",
        "role": job.role,
        "options": options.model_dump(mode="json"),
        "template": {"name": task.template.name, "digest": task.template.digest},
        "tasks": [about | {"examples": len(task.drawn), "distinct": len(task.drawn)}],
        "validation": [about | {"users": users, "examples": len(task.validated)}],
        "items": {"embedded": len(task.catalogue), "untitled": len(data.items) - len(task.catalogue)},
        "texts": _cuts(writer, [lesson.history for lesson in (*task.lessons, *task.exam)]),
        "steps": task.steps,
        "kept_epochs": {"items": course.items_of + 1, "users": course.users_of + 1},
        "packages": {name: version(name) for name in ("torch", "transformers")},
    }


def _cuts(writer: HistoryWriter, histories: Sequence[Sequence[Item]]) -> dict[str, int]:
    """How many texts the template's budget cut, and of how many items."""
    texts = [writer.write(history) for history in histories]
    return {
        "histories": len(texts),
        "cut": sum(text.omitted > 0 for text in texts),
        "items_omitted": sum(text.omitted for text in texts),
        "items_shortened": sum(text.shortened for text in texts),
    }
