"""The shipped trainer: a LoRA by supervised fine-tuning with TRL's SFTTrainer, loss on the answer alone.

Prompts are those of the domain's template in the base model's own chat template. Weights are learned from training targets
only; validation targets decide nothing but when to stop and which checkpoint to keep, and test targets stay unseen.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel

from ...registry.strict_json import read_object
from ...tasks import (
    ClickQuestion,
    ClickTemplate,
    DomainData,
    Question,
    Split,
    TaskSpec,
    Template,
    examples,
    load_template,
    questions,
)
from ..plugin import TrainerError, TrainingJob, TrainingResult
from ..precision import precision as _precision
from .clicks import click_pools
from .options import SftOptions
from .pool import Pool, check_template, count_of, validation_spec

if TYPE_CHECKING:
    import torch

LOG = "training_log.jsonl"
PLOT = "loss.png"
VALIDATED = ("validation_loss", "validation_ranking")


class SftTrainer:
    """LoRA by supervised fine-tuning (TRL)."""

    name: ClassVar[str] = "sft"
    summary: ClassVar[str] = "LoRA by supervised fine-tuning with TRL, loss on the answer or on the choice among titles"
    Options: ClassVar[type[BaseModel]] = SftOptions

    def train(self, job: TrainingJob) -> TrainingResult:
        """Train on the job's domains and leave the adapter in `job.folder`/adapter, with its log and a plot of the loss.

        Under `accelerate launch` every process calls this with the same job, and the first one writes the adapter. The metrics
        are `train_loss`, the mean of the last tenth of the steps; `validation_loss` and `validation_ranking`, those of the
        checkpoint kept; `train_seconds` of this call; and `tokens_per_second`, tokens without padding by the seconds of this
        call's steps, in which loading, validation and checkpoints have no part.
        Raises TrainerError: no examples, an example longer than `max_tokens`, a diverged loss, a batch that the processes
        cannot share, a loss that the template, the model or the batch does not allow.
        """
        options = job.options
        assert isinstance(options, SftOptions)
        from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

        from ...tasks.ranking import packs_answers
        from . import tuning
        from .objective import make_loss
        from .validation import CandidateQuestions

        tokenizer = AutoTokenizer.from_pretrained(job.base_folder, local_files_only=True, trust_remote_code=False)
        if not tokenizer.chat_template:
            raise TrainerError(
                "the base model's tokenizer has no chat template",
                hint="use the instruction-tuned checkpoint of this model",
            )
        template, pool, validation = _pools(job.domains, options)
        learned, checked = pool.ready(tokenizer), validation.ready(tokenizer)
        set_seed(options.seed)
        dtype, mixed = _precision(job.device)
        model = AutoModelForCausalLM.from_pretrained(
            job.base_folder, dtype=dtype, local_files_only=True, trust_remote_code=False
        )
        rows, checked_rows = (
            _rows([each.question for each in some], tokenizer, options.max_tokens) for some in (learned, checked)
        )
        trainer = tuning.make_trainer(job, options, model, tokenizer, rows, checked_rows, mixed=mixed)
        tuning.learn_by(trainer, make_loss(options, [*learned, *checked], tokenizer, model))
        if ranked := [each.question for each in checked if isinstance(each.question, Question)]:
            trainer.candidates = CandidateQuestions(ranked, tokenizer, packs=packs_answers(model))
        started = time.monotonic()
        tuning.run(trainer, job)
        seconds = time.monotonic() - started
        state, watch, order = trainer.state, trainer.watch, trainer.order
        log = _log(state.log_history)
        adapter = job.folder / "adapter"
        if trainer.is_world_process_zero():
            _save(trainer.model, adapter, job.base_name)
            _write_log(log, adapter, trainer.objective.unit)
        trainer.accelerator.wait_for_everyone()
        step = state.global_step
        context = {
            "trainer": self.name,
            "role": job.role,
            "options": options.model_dump(mode="json"),
            "template": {"name": template.name, "digest": template.digest},
            "tasks": list(pool.specs),
            "validation": list(validation.specs),
            "validate_by": (trainer.args.metric_for_best_model or "").removeprefix("eval_") or None,
            "examples": len(pool.questions),
            "steps": step,
            "kept_step": state.best_global_step or step,
            "stopped_early": step < state.max_steps,
            "tokens": order.tokens(step),
            "dtype": {"base": _name(dtype), "lora": _name(_lora_dtype(trainer.model))},
            "packages": {name: version(name) for name in ("torch", "transformers", "peft", "trl", "accelerate")},
        }
        metrics = {"train_loss": _final_loss(log), "train_seconds": round(seconds, 1)}
        if watch.seconds:
            learned = order.tokens(step) - order.tokens(watch.first_step)
            metrics["tokens_per_second"] = round(learned / watch.seconds, 1)
        metrics |= _validated(log, state.best_global_step)
        return TrainingResult(adapter, metrics, context)


def _pools(domains: Sequence[DomainData], options: SftOptions) -> tuple[Template | ClickTemplate, Pool, Pool]:
    """The template, what is learned, and what is validated on."""
    if unknown := sorted(options.weights.keys() - {data.name for data in domains}):
        raise TrainerError(
            f"weights names {', '.join(unknown)}, which is not trained on",
            hint=f"domains of this training: {', '.join(data.name for data in domains)}",
        )
    if options.task == "clicks":
        return click_pools(domains, options)
    template = load_template(options.template)
    check_template(options, template)
    return template, _training_pool(domains, template, options), _validation_pool(domains, template, options)


def _training_pool(domains: Sequence[DomainData], template: Template, options: SftOptions) -> Pool:
    """The training questions of all domains, pooled by weight, and the digests that say exactly which."""
    picked: list[Question] = []
    sources: list[DomainData] = []
    specs = []
    for data in domains:
        there = len(examples(data, "train"))
        if not there:
            raise TrainerError(
                f"domain {data.name!r} has no training examples", hint="users need at least 4 interactions"
            )
        count = count_of(data.name, there, options)
        spec, drawn = _draw(data, "train", template, options, count if count < there else None)
        picked += [drawn[number % len(drawn)] for number in range(count)]
        sources += [data] * count
        specs.append(
            {
                "domain": data.name,
                "data": data.digest,
                "task": spec.digest,
                "examples": count,
                "distinct": len(drawn),
            }
        )
    return Pool(tuple(picked), tuple(sources), tuple(specs))


def _validation_pool(domains: Sequence[DomainData], template: Template, options: SftOptions) -> Pool:
    """The validation questions of all domains, and what tells which: the first `examples` of `tasks.sample` with the seed."""
    if not options.validation_examples:
        return Pool((), (), ())
    picked: list[Question] = []
    sources: list[DomainData] = []
    specs = []
    for data in domains:
        drawn = _draw(data, "validation", template, options, options.validation_examples)[1]
        picked += drawn
        sources += [data] * len(drawn)
        specs.append(validation_spec(data.name, data.digest, [q.example.user_id for q in drawn], options))
    return Pool(tuple(picked), tuple(sources), tuple(specs))


def _draw(
    data: DomainData, split: Split, template: Template, options: SftOptions, limit: int | None
) -> tuple[TaskSpec, list[Question]]:
    return questions(data, split, template, n_negatives=options.negatives, seed=options.seed, limit=limit)


def _rows(asked: Sequence[Question | ClickQuestion], tokenizer: Any, max_tokens: int) -> list[dict[str, Any]]:
    """Prompt and completion of every question, with their `length` in tokens. Raises TrainerError for one too long."""
    rows: list[dict[str, Any]] = [
        {"prompt": q.messages, "completion": [{"role": "assistant", "content": q.answer}]} for q in asked
    ]
    for row in rows:
        row["length"] = len(tokenizer.apply_chat_template(row["prompt"] + row["completion"])["input_ids"])
    lengths = [row["length"] for row in rows]
    if lengths and max(lengths) > max_tokens:
        raise TrainerError(
            f"{sum(n > max_tokens for n in lengths)} of {len(rows)} examples are longer than"
            f" {max_tokens} tokens, the longest has {max(lengths)}",
            hint=f"-o max_tokens={max(lengths)}, or a template that shows less, or fewer candidates by -o negatives=…",
        )
    return rows


def _lora_dtype(model: Any) -> torch.dtype:
    return next(parameter.dtype for parameter in model.parameters() if parameter.requires_grad)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _log(history: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
    """One record per step, and one per validation: what equal runs have in common, so no times."""
    names = {"loss": "loss", "learning_rate": "learning_rate", "eval_loss": VALIDATED[0], "eval_ranking": VALIDATED[1]}
    found = []
    for entry in history:
        figures = {new: entry[old] for old, new in names.items() if old in entry}
        if figures:
            found.append({"step": entry["step"], "epoch": round(entry["epoch"], 4), **figures})
    return found


def _final_loss(log: Sequence[Mapping[str, float]]) -> float:
    """The mean over the last tenth of the steps; a single step's loss is mostly chance."""
    losses = [entry["loss"] for entry in log if "loss" in entry]
    last = losses[-math.ceil(len(losses) / 10) :]
    return round(sum(last) / len(last), 5)


def _validated(log: Sequence[Mapping[str, float]], step: int | None) -> dict[str, float]:
    """The validation figures of the checkpoint that was kept."""
    return {name: round(e[name], 5) for e in log if e["step"] == step for name in VALIDATED if name in e}


def _save(model: Any, adapter: Path, base_name: str) -> None:
    """Write the adapter so that its bytes depend on nothing but its content: base by name, lists in order, no card."""
    shutil.rmtree(adapter, ignore_errors=True)
    model.save_pretrained(adapter)
    (adapter / "README.md").unlink(missing_ok=True)
    config_file = adapter / "adapter_config.json"
    config = read_object(config_file)
    config["base_model_name_or_path"] = base_name
    config["target_modules"] = sorted(config["target_modules"])
    config_file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _write_log(log: Sequence[Mapping[str, float]], folder: Path, unit: str) -> None:
    (folder / LOG).write_text("".join(json.dumps(entry) + "\n" for entry in log), encoding="utf-8")
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 3.6), layout="constrained")
    for name, marker in ("loss", ""), (VALIDATED[0], "o"), (VALIDATED[1], "s"):
        points = [(entry["step"], entry[name]) for entry in log if name in entry]
        if points:
            steps, losses = zip(*points, strict=True)
            axes.plot(steps, losses, label=name.replace("_", " "), linewidth=1, marker=marker)
    axes.set_xlabel("optimiser step")
    axes.set_ylabel(f"loss of the answer (nats per {unit}), ranking (nats)")
    axes.legend()
    # No software version in the file: the same curves give the same bytes.
    figure.savefig(folder / PLOT, dpi=120, metadata={"Software": None})
    pyplot.close(figure)
