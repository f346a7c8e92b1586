"""A second-hand bookshop as a plugin: a domain of its own with generated data, and a plain training loop for it."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field
from reccocktail.tasks import fit, load_template, questions
from reccocktail.trainers.plugin import PluginDomain, TrainerError, TrainingJob, TrainingResult

SERIES = ("The Lamplighter", "Harbour Nights", "A Cook's Travels", "Gardens of Lisbon", "The Small Observatory")
VOLUMES = 8


def write_books(folder: Path) -> None:
    """Who likes a series reads on in it. A real shop would write its orders here, or fetch them."""
    chance = random.Random(7)
    items = [
        {"item_id": f"s{series}v{volume}", "title": f"{title}, volume {volume + 1}"}
        for series, title in enumerate(SERIES)
        for volume in range(VOLUMES)
    ]
    readers = []
    for reader in range(60):
        series, start = chance.randrange(len(SERIES)), chance.randrange(3)
        read = [f"s{series}v{volume}" for volume in range(start, start + 5)]
        readers.append({"user_id": f"r{reader:02}", "items": read, "timestamps": [1_700_000_000 + n for n in range(5)]})
    for name, records in ("items", items), ("sequences", readers):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


class Options(BaseModel, extra="forbid"):
    """What `-o key=value` takes; `reccocktail trainers show bookshop` prints the descriptions."""

    epochs: int = Field(2, ge=1, description="passes over the purchases")
    examples: int | None = Field(None, ge=1, description="purchases drawn per domain; all when unset")
    learning_rate: float = Field(1e-3, gt=0, description="of AdamW")
    rank: int = Field(8, ge=1, description="LoRA rank r")
    seed: int = Field(42, description="of order and initialisation")


class Bookshop:
    """LoRA by a training loop that fits on a screen."""

    name = "bookshop"
    summary = "a bookshop's domain, and a plain training loop for it"
    Options = Options

    def domains(self) -> list[PluginDomain]:
        return [PluginDomain("second-hand-books", "Second-hand books", write_books, recipe="average")]

    def train(self, job: TrainingJob) -> TrainingResult:
        import torch
        from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
        from peft.utils import get_peft_model_state_dict
        from transformers import AutoModelForCausalLM, AutoTokenizer

        options = job.options
        assert isinstance(options, Options)
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise TrainerError("the bookshop's loop trains in one process", hint="use sft for several")
        torch.manual_seed(options.seed)
        tokenizer = AutoTokenizer.from_pretrained(job.base_folder)
        base = AutoModelForCausalLM.from_pretrained(job.base_folder, dtype=torch.float32).to(job.device)
        lora = LoraConfig(r=options.rank, target_modules="all-linear", task_type="CAUSAL_LM")
        model = get_peft_model(base, lora)
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=options.learning_rate)
        rows, tasks = _rows(job, options, tokenizer)

        checkpoint, begin, loss = job.folder / "checkpoint.pt", 0, torch.tensor(0.0)
        if job.resume and checkpoint.exists():
            saved = torch.load(checkpoint, weights_only=True)
            set_peft_model_state_dict(model, saved["lora"])
            optimizer.load_state_dict(saved["optimizer"])
            begin, loss = saved["epoch"], saved["loss"]
        for epoch in range(begin, options.epochs):
            order = random.Random(f"{options.seed}/{epoch}").sample(rows, len(rows))
            for done, (prompt, whole) in enumerate(order, start=epoch * len(rows) + 1):
                ids = torch.tensor([whole], device=job.device)
                labels = ids.clone()
                labels[0, : len(prompt)] = -100  # learn the answer, not the question
                loss = model(input_ids=ids, labels=labels).loss
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                job.progress(done, options.epochs * len(rows), {"loss": loss.item()})
            state = {"lora": get_peft_model_state_dict(model), "optimizer": optimizer.state_dict()}
            torch.save(state | {"epoch": epoch + 1, "loss": loss.detach()}, checkpoint.with_suffix(".tmp"))
            checkpoint.with_suffix(".tmp").replace(checkpoint)  # a checkpoint is there as a whole or not at all

        model.peft_config["default"].base_model_name_or_path = job.base_name  # a name, not a folder of this machine
        model.save_pretrained(job.folder / "adapter", save_embedding_layers=False)
        return TrainingResult(job.folder / "adapter", {"train_loss": loss.item()}, {"tasks": tasks})


def _rows(job: TrainingJob, options: Options, tokenizer: Any) -> tuple[list[tuple[list[int], list[int]]], list[Any]]:
    """Tokens of every question, without and with its answer; and digests that say which questions they were."""
    rows, tasks = [], []
    for data in job.domains:
        task, asked = questions(data, "train", load_template("next-title"), seed=options.seed, limit=options.examples)
        tasks.append({"domain": data.name, "data": data.digest, "task": task.digest})
        for question in fit(asked, tokenizer):
            prompt = tokenizer.apply_chat_template(question.messages, add_generation_prompt=True)["input_ids"]
            conversation = [*question.messages, {"role": "assistant", "content": question.answer}]
            rows.append((prompt, tokenizer.apply_chat_template(conversation)["input_ids"]))
    if not rows:
        raise TrainerError("there is no training data", hint="users need at least 4 interactions")
    return rows, tasks
