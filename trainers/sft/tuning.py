"""What `sft` asks of TRL and transformers: batches of like length in an order of our own, checkpoints, early stopping."""

from __future__ import annotations

import inspect
import math
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset, disable_progress_bars
from peft import LoraConfig
from transformers import EarlyStoppingCallback, PrinterCallback, TrainerCallback, TrainerState
from transformers.trainer_utils import EvalLoopOutput
from transformers.utils.logging import disable_progress_bar
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling, SFTTrainer

from ...registry.errors import InvalidArtifactError
from ...registry.strict_json import OWN_LIMIT, read_object
from ..batches import BatchOrder
from ..plugin import TrainerError, TrainingJob
from .losses import IGNORED, NUMBER, AnswerLoss, ChoiceLoss, ContrastLoss, Loss
from .objective import check_answers
from .validation import CandidateQuestions, batches_of_like_length, figures

if TYPE_CHECKING:
    from .options import SftOptions

CHECKPOINTS = "checkpoints"
STATE = "trainer_state.json"
RANKING = "eval_ranking"
CHEAP = 8  # on a CPU, ranking a question takes 1.5 times as long as learning from an example: benchmarks/training.py


class Tuner(SFTTrainer):
    """SFTTrainer that takes its batches in a given order, and on a CPU computes logits only where an answer is learned."""

    order: BatchOrder
    watch: Watch
    objective: Loss = AnswerLoss()
    candidates: CandidateQuestions | None = None  # those of validation

    def _get_train_sampler(self, train_dataset: Any = None) -> BatchOrder:
        return self.order

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        if NUMBER not in self._signature_columns:
            self._signature_columns = [*self._signature_columns, NUMBER]

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The objective in nats, summed over the batch and divided by how many tokens, or examples, an optimiser step has.

        `num_items_in_batch` are the answers' tokens of that step; without it the batch is taken for all of it. TRL leaves the
        prompt out of the vocabulary's product on a GPU; on a CPU it does not, and that product takes a third of the time of
        a small model.
        """
        if isinstance(self.objective, AnswerLoss) and (return_outputs or not self._logits_on_demand):
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        nats = self.objective.nats(inputs, partial(self._logits, model))
        if num_items_in_batch is None:
            parts = answer_tokens(inputs["labels"]).sum() if self.objective.unit == "token" else torch.tensor(len(nats))
            return nats.sum() / parts.clamp(min=1)
        parts = num_items_in_batch if self.objective.unit == "token" else self.order.batch_size
        # These are of all processes, and their gradients are averaged.
        return nats.sum() / parts * self.accelerator.num_processes

    def evaluation_loop(
        self, dataloader: Any, *_: Any, metric_key_prefix: str = "eval", **named: Any
    ) -> EvalLoopOutput:
        """`loss`: the mean over the validation examples of an example's loss; and by their candidates, `ranking`, if that is wanted.

        An example's loss is the mean over the tokens of its answer or, where a title is learned from those of its batch, that of
        its title among its candidates. The batches are not the loader's, so that nothing depends on how many processes there are.
        """
        rows, model = dataloader.dataset, self.model
        assert model is not None
        model.eval()
        told: Any = self.accelerator, partial(self._logits, model), self._sign_of_life
        if isinstance(self.objective, ChoiceLoss):
            assert self.candidates is not None
            scored = self.candidates.pmi if isinstance(self.objective, ContrastLoss) else self.candidates.likelihoods
            loss = self.candidates.choice(scored(*told), self.objective.temperature)
        else:
            batches = batches_of_like_length([len(ids) for ids in rows["input_ids"]])
            loss = figures(self.accelerator, batches, lambda batch: self._validated(rows, batch)).mean().item()
        found = {f"{metric_key_prefix}_loss": loss}
        if self.candidates is not None and self.args.metric_for_best_model == RANKING and math.isfinite(loss):
            found[f"{metric_key_prefix}_ranking"] = self.candidates.ranking(self.candidates.pmi(*told))
        return EvalLoopOutput(None, None, found, len(rows))  # pyright: ignore[reportArgumentType]

    def _validated(self, rows: Any, batch: Sequence[int]) -> torch.Tensor:
        inputs = self._prepare_inputs(self.data_collator([rows[number] for number in batch]))
        nats = self.objective.nats(inputs, partial(self._logits, self.model))
        self._sign_of_life()
        return nats / answer_tokens(inputs["labels"]).clamp(min=1)

    def _sign_of_life(self) -> None:
        self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)

    def _logits(self, model: Any, given: Mapping[str, torch.Tensor], places: torch.Tensor) -> torch.Tensor:
        """[rows, places, vocabulary] of a batch that the model is given; a mask [rows, 1, tokens, tokens] says what attends to what."""
        mask = given["attention_mask"]
        if mask.ndim == 4:
            least = torch.finfo(self._dtype).min
            mask = torch.zeros(mask.shape, dtype=self._dtype, device=mask.device).masked_fill(~mask, least)
        told = {**given, "attention_mask": mask, "use_cache": False}
        if self._takes_places:
            return model(**told, logits_to_keep=places).logits
        return model(**told).logits[:, places]

    @property
    def _dtype(self) -> torch.dtype:
        """Of the base model's activations, which an additive mask must have too."""
        model: Any = self.model
        return model.get_input_embeddings().weight.dtype

    @cached_property
    def _logits_on_demand(self) -> bool:
        """Whether to compute the loss here: on a CPU, for a model that can leave logits out and has no loss of its own."""
        return self.accelerator.device.type == "cpu" and self._takes_places and not self.aux_loss_enabled

    @cached_property
    def _takes_places(self) -> bool:
        """Whether the model can be asked for the logits of some places alone."""
        model: Any = self.model
        return "logits_to_keep" in inspect.signature(model.get_base_model().forward).parameters


class Collator(DataCollatorForLanguageModeling):
    """TRL's, with the numbers of the examples where they have some."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = super().torch_call(examples)
        if NUMBER in examples[0]:
            batch[NUMBER] = torch.tensor([example[NUMBER] for example in examples])
        return batch


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
        for name in ("loss", "eval_loss", RANKING):
            value = told.get(name)
            if value is not None and not math.isfinite(value):
                raise TrainerError(
                    f"training diverged: the {name.replace('eval_', 'validation ')} is {value} at step {state.global_step}",
                    hint="-o learning_rate=… smaller",
                )
        self._figures |= {name: float(told[name]) for name in ("loss", "learning_rate") if name in told}

    def on_prediction_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._job.progress(state.global_step, state.max_steps, self._figures)  # a sign of life while validating


def _warm_up(share: float, steps: int) -> float:
    """As transformers takes it: a share of the steps, rounded up, or a number of them.

    The first step of a warm-up has the learning rate 0, so it is never the only one, for that would train nothing.
    """
    return share if math.ceil(share * steps) < steps else steps - 1


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
        warmup_steps=_warm_up(options.warmup, steps),
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
        metric_for_best_model=_best_by(options, every, len(validation)) if validation else None,
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
    trainer.data_collator = Collator(trainer.data_collator.pad_token_id)  # pyright: ignore
    trainer.order = BatchOrder([row["length"] for row in rows], options.batch_size, options.seed)
    trainer.watch = watch
    return trainer


def learn_by(trainer: Tuner, loss: Loss) -> None:
    """Let the trainer make this loss smaller. Its examples are those to learn from, then those of validation.

    Raises TrainerError where the loss cannot be had with the model, its answers or the batch.
    """
    trainer.objective = loss
    if isinstance(loss, AnswerLoss):
        return
    if trainer.aux_loss_enabled:
        raise TrainerError(
            "the model adds a loss of its own, which balances its experts and is part of loss=answer alone",
            hint="-o loss=answer",
        )
    if isinstance(loss, ChoiceLoss) and trainer.args.per_device_train_batch_size < 2:
        raise TrainerError(
            "loss=choice and loss=contrast compare the examples of a forward pass, and there is one in each",
            hint="-o micro_batch=2 or more; with several processes, a larger batch_size",
        )
    first = 0
    for name in ("train_dataset", "eval_dataset"):
        rows = getattr(trainer, name)
        if rows is not None:
            check_answers(loss, rows["labels"], first)
            setattr(trainer, name, rows.add_column(NUMBER, list(range(first, first + len(rows)))))
            first += len(rows)


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


def _best_by(options: SftOptions, every: int, ranked: int) -> str:
    """The figure that checkpoints are chosen by, where so many questions are ranked after every so many steps."""
    cheap = options.task == "rank" and every * options.batch_size >= CHEAP * ranked
    return {"ranking": RANKING, "loss": "eval_loss"}[options.validate_by or ("ranking" if cheap else "loss")]


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
