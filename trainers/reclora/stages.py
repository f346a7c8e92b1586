"""The stages of a training, each kept in the run's folder once it is done: the recommender, the items' embeddings, the LoRAs, the bundle."""

from __future__ import annotations

import json
import math
import shutil
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ...networks.bundle import BundleOrigin, Retrieval, shown_by, write_bundle
from ...networks.din import WEIGHTS, FrozenDin, train_din
from ...networks.gated_lora import GatedLora
from ...networks.options import DinOptions
from ...registry.digests import file_digest
from ...registry.store.files import sync_all
from ...tasks import (
    ClickData,
    ClickTemplate,
    Item,
    ItemEmbeddings,
    click_data,
    load_click_template,
    roc_auc,
    user_digest,
)
from ...tasks.click_prompts import answer_ids
from ..plugin import TrainingJob, TrainingResult
from ..precision import precision
from ..runs import base_digest
from ..seeding import seeded
from .checkpoints import Checkpoints, Course
from .item_embeddings import embed_items, titled
from .learning import Exam, Learner, Plan
from .meter import Meter
from .options import RecloraOptions
from .rows import Drawn, Examples, Wording, draw, scored

ADAPTER, RECOMMENDER, ITEMS, CHECKPOINTS = "adapter", "recommender", "items.safetensors", "checkpoints"
ITEM_PARTS, LOG = "items.parts", "training_log.jsonl"


def train(job: TrainingJob, options: RecloraOptions) -> TrainingResult:
    """All stages, one after the other; with `job.resume` those that the run's folder has are taken from there."""
    started = time.monotonic()
    task = Task.of(job, options)
    model, tokenizer = _load(job)
    answer_ids(tokenizer, task.template)  # refused before anything is trained
    with seeded(options.seed):
        net = GatedLora.beside(model, options.gates).to(job.device)
    if not job.resume:
        _clear(job.folder)
    plan = Plan.of(options, len(task.drawn.train))
    items = titled(task.clicks.items) if options.retrieval == "similar" else []
    meter = Meter.of(
        job.progress, din_rows=len(task.clicks.train) * options.din.epochs, items=len(items), rows=plan.rows
    )
    recommender = trained_recommender(job.folder / RECOMMENDER, task.clicks, options.din, meter)
    embeddings = embedded_items(job.folder / ITEMS, model, tokenizer, items, meter) if items else None
    wording = Wording(task.clicks.items, task.template, shown_by(task.retrieval, embeddings))
    examples = Examples.of(task.drawn.train, wording, tokenizer, recommender)
    examples.expect_at_most(options.max_tokens)
    exam = Exam.of(task.drawn.validation, wording, recommender) if task.drawn.validation else None
    learner = Learner(model, tokenizer, net, examples, exam, plan, meter.of_rows)
    course = learner.run(Checkpoints(job.folder / CHECKPOINTS))
    _write(job, task, Parts(net, recommender, embeddings), course)
    metrics = _metrics(course, task.clicks, recommender) | {"train_seconds": round(time.monotonic() - started, 1)}
    return TrainingResult(job.folder / ADAPTER, metrics, _context(job, task, course))


@dataclass(frozen=True)
class Task:
    """What is to be learned: clicks, how they are asked, and the rows that are drawn."""

    options: RecloraOptions
    clicks: ClickData
    template: ClickTemplate
    retrieval: Retrieval
    drawn: Drawn

    @classmethod
    def of(cls, job: TrainingJob, options: RecloraOptions) -> Task:
        clicks = click_data(job.domains[0], options.clicks)
        retrieval = Retrieval(by=options.retrieval, count=options.history)
        return cls(options, clicks, load_click_template(options.template), retrieval, draw(clicks, options))


@dataclass(frozen=True)
class Parts:
    """What a bundle has in it."""

    net: GatedLora
    recommender: FrozenDin
    embeddings: ItemEmbeddings | None


def _load(job: TrainingJob) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    tokenizer = AutoTokenizer.from_pretrained(job.base_folder, local_files_only=True, trust_remote_code=False)
    model: Any = AutoModelForCausalLM.from_pretrained(
        job.base_folder, dtype=precision(job.device)[0], local_files_only=True, trust_remote_code=False
    )
    return model.to(job.device).eval().requires_grad_(False), tokenizer


def _clear(folder: Path) -> None:
    for name in (RECOMMENDER, ITEM_PARTS, CHECKPOINTS, ADAPTER):
        shutil.rmtree(folder / name, ignore_errors=True)
    (folder / ITEMS).unlink(missing_ok=True)


def trained_recommender(folder: Path, clicks: ClickData, options: DinOptions, meter: Meter) -> FrozenDin:
    """DIN on all training rows; that of the folder where it is there already."""
    if not folder.is_dir():
        made = train_din(clicks, options, progress=meter.of_recommender)
        half = folder.with_suffix(".half")
        shutil.rmtree(half, ignore_errors=True)
        made.save(half)
        sync_all(half.iterdir())
        half.rename(folder)  # there as a whole or not at all
    return FrozenDin.load(folder)


def embedded_items(
    path: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, items: list[Item], meter: Meter
) -> ItemEmbeddings:
    """The items' vectors; those of the file where it is there already, or of its parts."""
    parts = path.with_name(ITEM_PARTS)
    if not path.is_file():
        made = embed_items(model, tokenizer, items, meter.of_items, parts)
        half = path.with_suffix(".half")
        save_file({"vectors": made.vectors}, half)
        sync_all([half])
        half.rename(path)
    shutil.rmtree(parts, ignore_errors=True)
    return ItemEmbeddings(tuple(item.item_id for item in items), load_file(path)["vectors"])


def _write(job: TrainingJob, task: Task, parts: Parts, course: Course) -> None:
    folder = job.folder / ADAPTER
    shutil.rmtree(folder, ignore_errors=True)
    data = (task.clicks.data_digest,)
    origin = BundleOrigin(
        base_digest(job.base_folder), task.template, task.options.clicks, task.retrieval, task.options.seed, data
    )
    write_bundle(folder, origin, parts.net, parts.recommender, parts.embeddings)
    (folder / LOG).write_text("".join(json.dumps(entry) + "\n" for entry in course.log), encoding="utf-8")


def _metrics(course: Course, clicks: ClickData, recommender: FrozenDin) -> dict[str, float]:
    losses = [entry["loss"] for entry in course.log if "loss" in entry]
    last = losses[-math.ceil(len(losses) / 10) :]
    kept = {
        name: round(value, 5)
        for entry in course.log
        if entry["step"] == course.best_step
        for name, value in entry.items()
        if name.startswith("validation_")
    }
    of_recommender = roc_auc(scored(clicks.validation, recommender.scores(clicks.validation)))
    return {"train_loss": round(sum(last) / len(last), 5), **kept, "recommender_roc_auc": round(of_recommender, 5)}


def _context(job: TrainingJob, task: Task, course: Course) -> dict[str, Any]:
    clicks, drawn = task.clicks, task.drawn
    about = {"domain": clicks.name, "data": clicks.data_digest}
    validated = sorted({user_digest(row.user_id) for row in drawn.validation})
    return {
        "trainer": "reclora",
        "role": job.role,
        "options": task.options.model_dump(mode="json"),
        "template": {"name": task.template.name, "digest": task.template.digest},
        "tasks": [about | {"task": clicks.digest, "examples": len(drawn.train), "distinct": len(drawn.train)}],
        "validation": [about | {"users": validated, "examples": len(drawn.validation)}],
        "recommender": {
            "trained_on": clicks.digest,
            "rows": len(clicks.train),
            "digest": file_digest(job.folder / RECOMMENDER / WEIGHTS),
        },
        "steps": course.step,
        "kept_step": course.best_step,
        "stopped_early": course.stopped,
        "packages": {name: version(name) for name in ("torch", "transformers")},
    }
