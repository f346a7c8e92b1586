"""The shipped trainer: a LoRA by supervised fine-tuning with TRL's SFTTrainer, loss on the answer alone.

Prompts are those of the domain's template in the base model's own chat template; the answer is the target's title.
Only training targets are learned from: the validation and test interactions of every user stay unseen.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from ..tasks import DEFAULT_TEMPLATE, Question, load_template, questions
from .plugin import TrainerError, TrainingJob, TrainingResult


class SftOptions(BaseModel):
    """Options of `sft`; defaults after the paper's hyper-parameters, with the learning rate small models like."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    examples: Annotated[int | None, Field(ge=1, description="training examples drawn per domain; all when unset")] = (
        None
    )
    epochs: Annotated[int, Field(ge=1, description="passes over the examples")] = 2
    learning_rate: Annotated[float, Field(gt=0, description="peak, reached after warm-up, then cosine to zero")] = 5e-4
    warmup: Annotated[float, Field(ge=0, lt=1, description="share of the steps that warm up")] = 0.05
    batch_size: Annotated[int, Field(ge=1, description="examples per optimiser step")] = 8
    rank: Annotated[int, Field(ge=1, description="LoRA rank r")] = 16
    alpha: Annotated[float, Field(gt=0, description="LoRA alpha; the delta is scaled by alpha / rank")] = 32
    dropout: Annotated[float, Field(ge=0, lt=1, description="LoRA dropout")] = 0.05
    target_modules: Annotated[str, Field(description="`all-linear`, or module names joined by commas")] = "all-linear"
    max_tokens: Annotated[int, Field(ge=16, description="longest prompt plus answer; a longer example is refused")] = (
        1200
    )
    template: Annotated[str, Field(description="prompt template")] = DEFAULT_TEMPLATE
    negatives: Annotated[int, Field(ge=1, description="candidates beside the target in a prompt")] = 9
    seed: Annotated[int, Field(description="of examples, order, dropout and initialisation")] = 42
    save_every: Annotated[int, Field(ge=1, description="optimiser steps between checkpoints")] = 20


class SftTrainer:
    """LoRA by supervised fine-tuning (TRL)."""

    name: ClassVar[str] = "sft"
    summary: ClassVar[str] = "LoRA by supervised fine-tuning with TRL, loss on the answer only"
    Options: ClassVar[type[BaseModel]] = SftOptions

    def train(self, job: TrainingJob) -> TrainingResult:
        """Train on the job's domains and leave the adapter in `job.folder`/adapter.

        Raises TrainerError: no examples, an example longer than `max_tokens`, a diverged loss.
        """
        from peft import LoraConfig
        from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, set_seed
        from transformers.utils.logging import disable_progress_bar
        from trl.trainer.sft_config import SFTConfig
        from trl.trainer.sft_trainer import SFTTrainer

        options = job.options
        assert isinstance(options, SftOptions)
        disable_progress_bar()  # the job's own progress tells more
        picked, specs = _pick(job, options)
        tokenizer = AutoTokenizer.from_pretrained(job.base_folder, local_files_only=True)
        if not tokenizer.chat_template:
            raise TrainerError(
                "the base model's tokenizer has no chat template",
                hint="use the instruction-tuned checkpoint of this model",
            )
        dataset = _dataset(picked, tokenizer, options)
        set_seed(options.seed)
        dtype, mixed = _precision(job.device)
        model = AutoModelForCausalLM.from_pretrained(job.base_folder, dtype=dtype, local_files_only=True)
        checkpoints = job.folder / "checkpoints"
        trainer = SFTTrainer(
            model=model,
            processing_class=tokenizer,
            train_dataset=dataset,
            peft_config=LoraConfig(
                r=options.rank,
                lora_alpha=options.alpha,  # pyright: ignore[reportArgumentType]  PEFT takes a float
                lora_dropout=options.dropout,
                target_modules=_targets(options.target_modules),
                task_type="CAUSAL_LM",
            ),
            args=SFTConfig(
                output_dir=str(checkpoints),
                num_train_epochs=options.epochs,
                learning_rate=options.learning_rate,
                lr_scheduler_type="cosine",
                warmup_steps=options.warmup,  # below 1 it is a share of all steps
                per_device_train_batch_size=options.batch_size,
                max_length=None,
                completion_only_loss=True,
                bf16=mixed,
                gradient_checkpointing=job.device.startswith("cuda"),
                use_cpu=job.device == "cpu",
                seed=options.seed,
                data_seed=options.seed,
                save_steps=options.save_every,
                save_total_limit=2,
                logging_steps=5,
                report_to="none",
                disable_tqdm=True,
                dataloader_pin_memory=job.device.startswith("cuda"),
            ),
            callbacks=[_progress(job)],
        )
        trainer.remove_callback(PrinterCallback)  # it prints every figure that the job's progress shows
        started = time.monotonic()
        outcome = trainer.train(resume_from_checkpoint=_newest_checkpoint(checkpoints) if job.resume else None)
        loss = float(outcome.training_loss)
        if loss != loss:
            raise TrainerError("training diverged: the loss is not a number", hint="-o learning_rate=… smaller")
        adapter = job.folder / "adapter"
        _save(trainer.model, adapter, job.base_name)
        context = {
            "trainer": self.name,
            "trainer_version": version("reccocktail"),
            "role": job.role,
            "options": options.model_dump(mode="json"),
            "tasks": specs,
            "examples": len(picked),
            "packages": {name: version(name) for name in ("torch", "transformers", "peft", "trl")},
        }
        metrics = {"train_loss": round(loss, 5), "train_seconds": round(time.monotonic() - started, 1)}
        return TrainingResult(adapter, metrics, context)


def _pick(job: TrainingJob, options: SftOptions) -> tuple[list[Question], list[dict[str, Any]]]:
    """The training questions of all domains, pooled, and the digests that say exactly which."""
    template = load_template(options.template)
    picked: list[Question] = []
    specs = []
    for data in job.domains:
        spec, drawn = questions(
            data, "train", template, n_negatives=options.negatives, seed=options.seed, limit=options.examples
        )
        if not drawn:
            raise TrainerError(
                f"domain {data.name!r} has no training examples", hint="users need at least 4 interactions"
            )
        picked += drawn
        specs.append({"domain": data.name, "data": data.digest, "task": spec.digest, "examples": len(drawn)})
    return picked, specs


def _dataset(picked: list[Question], tokenizer: Any, options: SftOptions) -> Any:
    from datasets import Dataset

    rows = [{"prompt": q.messages, "completion": [{"role": "assistant", "content": q.answer}]} for q in picked]
    lengths = [len(tokenizer.apply_chat_template(r["prompt"] + r["completion"])["input_ids"]) for r in rows]
    if max(lengths) > options.max_tokens:
        raise TrainerError(
            f"{sum(n > options.max_tokens for n in lengths)} of {len(rows)} examples are longer than"
            f" {options.max_tokens} tokens, the longest has {max(lengths)}",
            hint=f"-o max_tokens={max(lengths)}, or fewer candidates by -o negatives=…",
        )
    return Dataset.from_list(rows)


def _targets(text: str) -> str | list[str]:
    return text if text == "all-linear" else [name.strip() for name in text.split(",")]


def _precision(device: str) -> tuple[Any, bool]:
    """(weights' dtype, autocast): all bfloat16 where the device multiplies it natively, else all float32."""
    import torch

    if device.startswith("cuda"):
        native = torch.cuda.is_bf16_supported()
    else:
        flags = Path("/proc/cpuinfo")
        native = flags.exists() and any(f in flags.read_text() for f in ("avx512_bf16", "amx_bf16"))
    return (torch.bfloat16, True) if native else (torch.float32, False)


def _progress(job: TrainingJob) -> Any:
    from transformers import TrainerCallback

    class Progress(TrainerCallback):
        """Passes the trainer's steps on to whoever watches the job."""

        def __init__(self) -> None:
            self.figures: dict[str, float] = {}

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            job.progress(state.global_step, state.max_steps, self.figures)

        def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **_: Any) -> None:
            self.figures = {k: float(v) for k, v in (logs or {}).items() if k in ("loss", "learning_rate")}

    return Progress()


def _newest_checkpoint(folder: Path) -> str | None:
    """The newest complete checkpoint: the trainer writes `trainer_state.json` last, so a killed save lacks it."""
    complete = [path.parent for path in folder.glob("checkpoint-*/trainer_state.json") if _is_json(path)]
    return str(max(complete, key=lambda path: int(path.name.rpartition("-")[2]))) if complete else None


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return False
    return True


def _save(model: Any, adapter: Path, base_name: str) -> None:
    """Write the adapter so that its bytes depend on nothing but its content: base by name, lists in order, no card."""
    shutil.rmtree(adapter, ignore_errors=True)
    model.save_pretrained(adapter)
    (adapter / "README.md").unlink(missing_ok=True)
    config_file = adapter / "adapter_config.json"
    config = json.loads(config_file.read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = base_name
    config["target_modules"] = sorted(config["target_modules"])
    config_file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
