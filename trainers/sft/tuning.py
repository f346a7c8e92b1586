"""What `sft` asks of TRL and transformers: batches of like length in an order of our own, checkpoints, early stopping."""

from __future__ import annotations

import inspect
import math
import os
import random
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset, disable_progress_bars
from peft import LoraConfig
from torch.nn import functional as F  # noqa: N812
from torch.utils.data import Sampler
from transformers import EarlyStoppingCallback, PrinterCallback, TrainerCallback, TrainerState
from transformers.trainer_utils import EvalLoopOutput
from transformers.utils.logging import disable_progress_bar
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from ...registry.errors import InvalidArtifactError
from ...registry.strict_json import OWN_LIMIT, read_object
from ..plugin import TrainerError, TrainingJob
from .validation import batches_of_like_length, figures

if TYPE_CHECKING:
    from .options import SftOptions

CHECKPOINTS = "checkpoints"
STATE = "trainer_state.json"
IGNORED = -100  # the label of a token that is not learned from
POOLED = 50  # batches that are sorted by length together: more save padding, fewer leave more to chance


class BatchOrder(Sampler[int]):
    """Examples in batches of like length. The order depends on seed and epoch alone, not on how many processes share a batch.

    What does not fill a batch is left out of an epoch; another epoch leaves out others. (transformers' own grouping draws from
    the global generator, which a resumed run finds in another state, and begins with the longest.)
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self._lengths, self._batch_size, self._seed = lengths, batch_size, seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self._lengths) // self._batch_size * self._batch_size

    def __iter__(self) -> Iterator[int]:
        return (index for batch in self._batches(self.epoch) for index in batch)

    def tokens(self, steps: int) -> int:
        """How many tokens the first `steps` batches have, without padding."""
        each = len(self) // self._batch_size
        batches = (batch for epoch in range(math.ceil(steps / each)) for batch in self._batches(epoch))
        return sum(self._lengths[index] for _, batch in zip(range(steps), batches, strict=False) for index in batch)

    def _batches(self, epoch: int) -> list[list[int]]:
        rng = random.Random(f"{self._seed}/{epoch}")  # noqa: S311
        order = rng.sample(range(len(self._lengths)), len(self))
        pool = POOLED * self._batch_size
        grouped = [
            index
            for start in range(0, len(order), pool)
            for index in sorted(order[start : start + pool], key=self._lengths.__getitem__)
        ]
        batches = [grouped[start : start + self._batch_size] for start in range(0, len(grouped), self._batch_size)]
        rng.shuffle(batches)
        return batches


class Tuner(SFTTrainer):
    """SFTTrainer that takes its batches in a given order, and on a CPU computes logits only where an answer is learned."""

    order: BatchOrder
    watch: Watch

    def _get_train_sampler(self, train_dataset: Any = None) -> BatchOrder:
        return self.order

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Cross-entropy of the answers' tokens in nats, summed over the batch and divided by `num_items_in_batch`.

        Without `num_items_in_batch`, as in validation, it is divided by how many there are. TRL leaves the prompt out of the
        vocabulary's product on a GPU; on a CPU it does not, and that product takes a third of the time of a small model.
        """
        if return_outputs or not self._logits_on_demand:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        loss = self._nats(model, inputs).sum()
        if num_items_in_batch is None:
            return loss / answer_tokens(inputs["labels"]).sum().clamp(min=1)
        # It counts the tokens of all processes, and their gradients are averaged.
        return loss / num_items_in_batch * self.accelerator.num_processes

    def evaluation_loop(
        self, dataloader: Any, *_: Any, metric_key_prefix: str = "eval", **named: Any
    ) -> EvalLoopOutput:
        """The mean over the examples of an example's loss, which is the mean over the tokens of its answer.

        It takes batches of its own instead of the loader's, so that it depends on no batch and on no number of processes.
        """
        rows, model = dataloader.dataset, self.model
        assert model is not None
        model.eval()
        batches = batches_of_like_length([len(ids) for ids in rows["input_ids"]])
        losses = figures(self.accelerator, batches, lambda batch: self._validated(rows, batch))
        return EvalLoopOutput(None, None, {f"{metric_key_prefix}_loss": losses.mean().item()}, len(rows))  # pyright: ignore[reportArgumentType]

    def _validated(self, rows: Any, batch: Sequence[int]) -> torch.Tensor:
        inputs = self._prepare_inputs(self.data_collator([rows[number] for number in batch]))
        losses = self._nats(self.model, inputs) / answer_tokens(inputs["labels"]).clamp(min=1)
        self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        return losses

    def _nats(self, model: Any, inputs: Any) -> torch.Tensor:
        """[examples]: the cross-entropy of an example's answer, summed over its tokens."""
        following = inputs["labels"][:, 1:]
        places = (following != IGNORED).any(dim=0).nonzero()[:, 0]
        told = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        if self._takes_places:
            logits = model(**told, use_cache=False, logits_to_keep=places).logits
        else:
            logits = model(**told, use_cache=False).logits[:, places]
        wanted = following[:, places]
        nats = F.cross_entropy(logits.flatten(0, 1).float(), wanted.flatten(), ignore_index=IGNORED, reduction="none")
        return nats.view(wanted.shape).sum(dim=1)

    @cached_property
    def _logits_on_demand(self) -> bool:
        """Whether to compute the loss here: on a CPU, for a model that can leave logits out and has no loss of its own."""
        return self.accelerator.device.type == "cpu" and self._takes_places and not self.aux_loss_enabled

    @cached_property
    def _takes_places(self) -> bool:
        """Whether the model can be asked for the logits of some places alone."""
        model: Any = self.model
        return "logits_to_keep" in inspect.signature(model.get_base_model().forward).parameters


def answer_tokens(labels: torch.Tensor) -> torch.Tensor:
    """[examples]: how many tokens the answers have, of labels [examples, tokens]."""
    return (labels[:, 1:] != IGNORED).sum(dim=1)


class Watch(TrainerCallback):
    """Passes the trainer's steps on to the job's listener, times them, and stops a training that diverged.

    `seconds` is what the steps since `first_step` took: forward, backward and update, not validation or checkpoints.
    """

    def __init__(self, job: TrainingJob) -> None:
        self._job = job
        self._figures: dict[str, float] = {}
        self._step_began = 0.0
        self.first_step, self.seconds = 0, 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.first_step = state.global_step

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._step_began = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._job.progress(state.global_step, state.max_steps, self._figures)

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **_: Any) -> None:
        told = logs or {}
        if "loss" in told:  # every step is logged, and a GPU has done it only when its loss is here
            self.seconds += time.monotonic() - self._step_began
        for name in ("loss", "eval_loss"):
            value = told.get(name)
            if value is not None and not math.isfinite(value):
                raise TrainerError(
                    f"training diverged: the {name.replace('eval_', 'validation ')} is {value} at step {state.global_step}",
                    hint="-o learning_rate=… smaller",
                )
        self._figures |= {name: float(told[name]) for name in ("loss", "learning_rate") if name in told}

    def on_prediction_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._job.progress(state.global_step, state.max_steps, self._figures)  # a sign of life while validating


def make_trainer(
    job: TrainingJob,
    options: SftOptions,
    model: Any,
    tokenizer: Any,
    rows: list[dict[str, Any]],
    validation: list[dict[str, Any]],
    *,
    mixed: bool,
) -> Tuner:
    """The trainer of a job. Raises TrainerError when the processes cannot share a batch, or the examples fill none."""
    disable_progress_bar()  # the job's own progress shows more
    disable_progress_bars()
    micro, accumulated = _shared_batch(options)
    if len(rows) < options.batch_size:
        raise TrainerError(
            f"{len(rows)} training examples do not fill a batch of {options.batch_size}",
            hint=f"-o batch_size={len(rows)}, or more data",
        )
    steps = len(rows) // options.batch_size * options.epochs
    every = min(options.validate_every or math.ceil(steps / 10), steps)
    early = [EarlyStoppingCallback(options.patience)] if validation and options.patience else []
    args = SFTConfig(
        output_dir=str(job.folder / CHECKPOINTS),
        num_train_epochs=options.epochs,
        learning_rate=options.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=options.warmup,  # below 1 it is a share of all steps
        per_device_train_batch_size=micro,
        per_device_eval_batch_size=1,  # of the loader, whose batches `evaluation_loop` does not take
        gradient_accumulation_steps=accumulated,
        max_length=None,
        completion_only_loss=True,
        bf16=mixed,
        gradient_checkpointing=job.device.startswith("cuda")
        if options.gradient_checkpointing is None
        else options.gradient_checkpointing,
        use_cpu=job.device == "cpu",
        ddp_backend="gloo" if job.device == "cpu" and "WORLD_SIZE" in os.environ else None,
        ddp_find_unused_parameters=False,
        seed=options.seed,
        data_seed=options.seed,
        eval_strategy="steps" if validation else "no",
        eval_steps=every,
        save_steps=every,
        save_total_limit=2,
        load_best_model_at_end=bool(validation),
        metric_for_best_model="eval_loss" if validation else None,
        greater_is_better=False if validation else None,
        restore_callback_states_from_checkpoint=True,
        logging_steps=1,
        logging_nan_inf_filter=False,  # it would hide a loss that is not a number
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=job.device.startswith("cuda"),
    )
    if job.device.startswith("cuda") and "WORLD_SIZE" not in os.environ:
        _keep_to_one_gpu(args, job.device)
    watch = Watch(job)
    trainer = Tuner(
        model=model,
        processing_class=tokenizer,
        train_dataset=Dataset.from_list(rows),
        eval_dataset=Dataset.from_list(validation) if validation else None,
        peft_config=LoraConfig(
            r=options.rank,
            lora_alpha=options.alpha,  # pyright: ignore[reportArgumentType]  PEFT takes a float
            lora_dropout=options.dropout,
            target_modules=_targets(options.target_modules),
            task_type="CAUSAL_LM",
        ),
        args=args,
        callbacks=[watch, *early],
    )
    trainer.remove_callback(PrinterCallback)  # it prints every figure that the job's progress shows
    trainer.order = BatchOrder([row["length"] for row in rows], options.batch_size, options.seed)
    trainer.watch = watch
    return trainer


def run(trainer: Tuner, job: TrainingJob) -> None:
    """Train to the end, from the newest complete checkpoint if the job resumes, else from the start."""
    folder = job.folder / CHECKPOINTS
    if not job.resume:
        if trainer.is_world_process_zero():
            shutil.rmtree(folder, ignore_errors=True)
        trainer.train()
        return
    checkpoint = newest_checkpoint(folder)
    if checkpoint and _stopped_early(checkpoint):
        # The trainer would continue, and only stop at the next validation.
        trainer.state = TrainerState.load_from_json(str(checkpoint / STATE))
        trainer._load_best_model()
    else:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)


def _keep_to_one_gpu(args: SFTConfig, device: str) -> None:
    """A process that trains alone uses the GPU it was given: transformers would spread a batch over all that it sees."""
    gpu = torch.device(device if ":" in device else f"{device}:0")
    torch.cuda.set_device(gpu)
    args._n_gpu = 1
    args.__dict__["_setup_devices"] = gpu  # where `args.device` is cached


def _shared_batch(options: SftOptions) -> tuple[int, int]:
    """(examples per forward pass of a process, passes per optimiser step)."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    share, rest = divmod(options.batch_size, processes)
    if rest or not share:
        raise TrainerError(
            f"a batch of {options.batch_size} cannot be divided among {processes} processes",
            hint=f"-o batch_size={processes * max(1, share)}",
        )
    micro = options.micro_batch or share
    if share % micro:
        raise TrainerError(
            f"micro_batch={micro} does not divide the {share} examples of a batch that a process has",
            hint=f"-o micro_batch={math.gcd(share, micro)}",
        )
    return micro, share // micro


def _targets(text: str) -> str | list[str]:
    return text if text == "all-linear" else [name.strip() for name in text.split(",")]


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint: the trainer writes its state last, so a killed save lacks it."""
    complete = [path.parent for path in folder.glob(f"checkpoint-*/{STATE}") if _state(path) is not None]
    return max(complete, key=lambda path: int(path.name.rpartition("-")[2])) if complete else None


def _stopped_early(checkpoint: Path) -> bool:
    state = _state(checkpoint / STATE) or {}
    stopped = state["stateful_callbacks"]["TrainerControl"]["args"]["should_training_stop"]
    return stopped and state["global_step"] < state["max_steps"]


def _state(path: Path) -> dict[str, Any] | None:
    try:
        return read_object(path, limit=OWN_LIMIT)
    except InvalidArtifactError:
        return None
