"""The contract test that a plugin's author runs, in one line of her own pytest or anywhere else:

    from reccocktail.trainers.testing import check_trainer

    def test_the_trainer_keeps_the_contract(tmp_path):
        check_trainer(MyTrainer, tmp_path, options={"epochs": 1})

It trains on a tiny random model and a small sample domain, some seconds each time. A trainer of the kind `personalised-lora` gets
data with ratings; it, and one of the kind `bi-tuning`, has to refuse a spirit. What does not keep the contract is an AssertionError
that says what the contract wants.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from ..registry.artifacts.allowlist import is_bundle
from ..registry.artifacts.bi_tunings import USER_SIDE
from ..registry.artifacts.bundles import BUNDLE, GATED_LORA, PERSONALISED
from ..registry.digests import file_digest
from ..registry.errors import InvalidArtifactError, RecCocktailError, WrongKindError
from ..tasks import (
    DEFAULT_CLICK_TEMPLATE,
    SAMPLE_DOMAINS,
    DomainData,
    generate,
    load_click_template,
    load_template,
    read_domain,
    write_domain,
)
from .child import as_json
from .domains import read_brought, recipe_of
from .plugin import LORA, Trainer, TrainerError, TrainingJob, TrainingResult, domains_of, kind_of, parse_options
from .runs import checked, inspect_result

BASE = "tiny"
TITLES = tuple(domain.name for domain in SAMPLE_DOMAINS)
TEMPLATES = ("next-title", "pick-one")
CHATML = (
    "{% for m in messages %}{{ '<|im_start|> ' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|> assistant\n' }}{% endif %}"
)


def check_trainer(
    trainer: Callable[[], Trainer],
    folder: Path,
    *,
    options: Mapping[str, str | float | bool] | None = None,
    deterministic: bool = False,
    check_recipe: Callable[[str], object] | None = None,
) -> TrainingResult:
    """Hold a trainer to its contract, in the empty folder; the result of its first training, for tests of your own.

    `trainer` is the class. `options` should make training short, but with several steps. `deterministic` claims that equal
    seeds give equal bytes, and a resumed training what an undisturbed one gives. Domains that the trainer brings are made and
    read as well; pass `reccocktail.engine.recipes.load_recipe` as `check_recipe` if they name recipes.
    Raises AssertionError.
    """
    made = trainer()
    _check_form(made)
    _check_options(made)
    given = _parsed(made, options or {})
    _check_domains(made, check_recipe)
    kind = _kind(made)
    data = sample_data(folder / "data", rated=kind == PERSONALISED)
    bench = _Bench(made, folder, tiny_base(folder / "base"), data, given)
    first = bench.train("first")
    spirit = bench.train if kind == LORA else bench.expect_refused
    spirit("spirit", role="spirit", domains=("kitchen", "garden"))
    resumed = bench.train_interrupted("interrupted")
    if deterministic:
        again = bench.train("again")
        _check_equal(first, again, "with equal options and seed a trainer that claims determinism gives equal weights")
        _check_alike(first, resumed)
    return first


def _kind(trainer: Trainer) -> str:
    try:
        return kind_of(trainer)
    except TrainerError as error:
        raise AssertionError(f"the contract wants a kind that can be registered: {error}") from error


def _check_form(trainer: object) -> None:
    assert isinstance(trainer, Trainer), "the contract wants the attributes name, summary and Options, and a train(job)"
    for name in ("name", "summary"):
        value = getattr(trainer, name)
        assert isinstance(value, str), f"the contract wants text for {name}, not {value!r}"
        assert value.strip() == value != "", f"the contract wants a {name}, without blanks around it, not {value!r}"
        assert "\n" not in value, f"the contract wants {name} on one line, not {value!r}"
    assert isinstance(trainer.Options, type), f"the contract wants a class for Options, not {trainer.Options!r}"
    own = issubclass(trainer.Options, BaseModel) and trainer.Options is not BaseModel
    assert own, "the contract wants a pydantic model of its own for Options"


def _check_options(trainer: Trainer) -> None:
    silent = [name for name, field in trainer.Options.model_fields.items() if not field.description]
    assert not silent, f"the contract wants a Field(description=…) for every option; without one: {', '.join(silent)}"
    try:
        trainer.Options.model_validate({"no_such_option": "1"})
    except ValidationError as error:
        extra = any(e["type"] == "extra_forbidden" for e in error.errors())
    else:
        extra = False
    assert extra, 'the contract wants unknown options refused: class Options(BaseModel, extra="forbid")'


def _parsed(trainer: Trainer, options: Mapping[str, object]) -> BaseModel:
    try:
        parsed = parse_options(trainer, {name: str(value) for name, value in options.items()})
        as_json(parsed, trainer)
    except TrainerError as error:
        raise AssertionError(f"the contract wants options that can be typed and kept as JSON: {error}") from error
    return parsed


def _check_domains(trainer: Trainer, check_recipe: Callable[[str], object] | None) -> None:
    try:
        for domain in domains_of(trainer):
            with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
                data = read_brought(trainer, domain, Path(first))
                again = read_brought(trainer, domain, Path(second))
            assert data.sequences, f"the contract wants interactions in the data of domain {domain.name!r}"
            assert data.digest == again.digest, (
                f"the contract wants the same data for domain {domain.name!r} whenever they are made: seed what is random"
            )
            recipe = recipe_of(domain)
            if recipe is not None and Path(recipe).suffix:
                assert Path(recipe).is_file(), (
                    f"domain {domain.name!r} names the recipe file {recipe}, which is not there"
                )
            if recipe is not None and check_recipe is not None:
                check_recipe(recipe)
    except RecCocktailError as error:
        raise AssertionError(f"the contract wants domains that can be registered: {error}") from error


@dataclass(frozen=True)
class _Bench:
    """A trainer with all that it needs to train."""

    trainer: Trainer
    folder: Path
    base: Path
    data: Path
    options: BaseModel

    def train(
        self,
        name: str,
        *,
        role: Literal["spirit", "ingredient"] = "ingredient",
        domains: tuple[str, ...] = ("skin-care",),
        resume: bool = False,
    ) -> TrainingResult:
        """One training in a folder of its own, watched."""
        steps: list[tuple[int, int]] = []
        job = self._job(name, role, domains, resume)
        before = _files(self.base) | _files(self.data)
        with _stdout_watched(self.folder) as printed:
            try:
                result = self.trainer.train(replace(job, progress=_recorder(steps)))
            except RecCocktailError as error:
                raise AssertionError(f"the trainer refused the training {name!r}: {error}") from error
        assert not (text := printed()), f"the contract wants stdout left alone; the trainer printed {text[:200]!r}"
        assert _files(self.base) | _files(self.data) == before, (
            "the contract wants base model and data left as they are; the trainer changed files there"
        )
        _check_steps(steps)
        return self._accepted(result, job)

    def expect_refused(self, name: str, *, role: Literal["spirit", "ingredient"], domains: tuple[str, ...]) -> None:
        """What the trainer's kind cannot be trained as."""
        try:
            self.trainer.train(self._job(name, role, domains, False))
        except RecCocktailError:
            return
        raise AssertionError(f"the contract wants a {role} refused by a trainer of the kind {kind_of(self.trainer)}")

    def train_interrupted(self, name: str) -> TrainingResult:
        """A training that is interrupted after more than half of its steps, as by Ctrl-C, and then resumed."""
        job = self._job(name, "ingredient", ("skin-care",), False)
        interrupted = False

        def interrupt(done: int, total: int, _: object) -> None:
            nonlocal interrupted
            if not interrupted and done > total / 2:
                interrupted = True
                raise KeyboardInterrupt

        try:
            self.trainer.train(replace(job, progress=interrupt))
        except KeyboardInterrupt:
            pass
        else:
            assert not interrupted, "the contract wants an interruption to end the training: let KeyboardInterrupt pass"
        try:
            return self.train(name, resume=True)
        except AssertionError as error:
            raise AssertionError(f"the contract wants an interrupted training to resume: {error}") from error

    def _job(
        self, name: str, role: Literal["spirit", "ingredient"], domains: tuple[str, ...], resume: bool
    ) -> TrainingJob:
        folder = self.folder / "runs" / name
        folder.mkdir(parents=True, exist_ok=resume)
        return TrainingJob(
            role=role,
            base_folder=self.base,
            base_name=BASE,
            domains=tuple(read_domain(self.data / domain) for domain in domains),
            folder=folder,
            options=self.options,
            resume=resume,
            device="cpu",
            progress=lambda *_: None,
        )

    def _accepted(self, result: object, job: TrainingJob) -> TrainingResult:
        try:
            accepted = checked(result, self.trainer, job)
            inspect_result(accepted.adapter, self.trainer, self.base, base_names=(BASE, str(self.base)))
        except (TrainerError, InvalidArtifactError, WrongKindError) as error:
            raise AssertionError(f"the contract wants a result that can be registered: {error}") from error
        return accepted


def _recorder(steps: list[tuple[int, int]]) -> Callable[[int, int, Mapping[str, float]], None]:
    def progress(done: int, total: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            assert isinstance(value, float | int), f"the contract wants numbers for progress, not {name}={value!r}"
        steps.append((done, total))

    return progress


def _check_steps(steps: list[tuple[int, int]]) -> None:
    assert steps, (
        "the contract wants progress(done, total, figures) called: a training without progress is stopped as hanging"
    )
    done = [number for number, _ in steps]
    assert done == sorted(done), f"the contract wants progress that only grows; the steps got {done}"
    wrong = [(number, total) for number, total in steps if not 0 <= number <= total]
    assert not wrong, f"the contract wants 0 <= done <= total for progress, not {wrong[0]}"


def _check_equal(first: TrainingResult, second: TrainingResult, want: str) -> None:
    # a bundle's manifest has the digests of all its files
    whole = [result.adapter / BUNDLE if is_bundle(result.adapter) else _weights(result) for result in (first, second)]
    assert file_digest(whole[0]) == file_digest(whole[1]), f"the contract wants this: {want}"


def _weights(result: TrainingResult) -> Path:
    names = ("adapter_model.safetensors", GATED_LORA, USER_SIDE)
    return next(result.adapter / name for name in names if (result.adapter / name).is_file())


def _check_alike(first: TrainingResult, resumed: TrainingResult) -> None:
    load_file, torch = import_module("safetensors.torch").load_file, import_module("torch")
    tensors = [load_file(_weights(result)) for result in (first, resumed)]
    same = tensors[0].keys() == tensors[1].keys() and all(
        torch.allclose(tensor, tensors[1][name], rtol=1e-3, atol=1e-5) for name, tensor in tensors[0].items()
    )
    assert same, "the contract wants a resumed training of a deterministic trainer to end where an undisturbed one does"


@contextmanager
def _stdout_watched(folder: Path) -> Iterator[Callable[[], str]]:
    """Gives what was written to stdout meanwhile: by Python, by C or by a child process."""
    sys.stdout.flush()
    kept, written, usual = os.dup(1), folder / "stdout.txt", sys.stdout
    with written.open("w+", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        sys.stdout = file
        try:
            yield lambda: written.read_text(encoding="utf-8", errors="replace")
            file.flush()
        finally:
            sys.stdout = usual
            os.dup2(kept, 1)
            os.close(kept)


def _files(folder: Path) -> dict[Path, tuple[int, int]]:
    found = {path: path.stat() for path in folder.rglob("*") if path.is_file()}
    return {path: (stat.st_size, stat.st_mtime_ns) for path, stat in found.items()}


def sample_data(folder: Path, *, rated: bool = False) -> Path:
    """Data folders of all sample domains, of a few shoppers each, who rate what they buy with 1 to 5 if that is wanted."""
    for name in TITLES:
        data = generate(name, users=20)
        write_domain(_rated(data) if rated else data, folder / name)
    return folder


def _rated(data: DomainData) -> DomainData:
    histories = [
        replace(
            history,
            fields={
                **history.fields,
                "ratings": [float(1 + (user + 2 * place) % 5) for place in range(len(history.items))],
                "timestamps": list(range(len(history.items))),
            },
        )
        for user, history in enumerate(data.sequences)
    ]
    return DomainData.of(data.name, data.items.values(), histories)


def tiny_base(folder: Path) -> Path:
    """A Llama with random weights and two layers, and a tokenizer with a chat template that knows the sample domains' words."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    wording = [text for name in TEMPLATES for text in (load_template(name).system, load_template(name).user)]
    clicks = load_click_template(DEFAULT_CLICK_TEMPLATE)
    wording += [clicks.system, clicks.user, clicks.positive, clicks.negative]
    titles = [item.title for name in TITLES for item in generate(name, users=0).items.values()]
    words = Tokenizer(models.WordLevel(unk_token="<unk>"))  # noqa: S106
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = ["<unk>", "<pad>", "<|im_start|>", "<|im_end|>"]
    texts = [*wording, "system user assistant ||", *titles]
    words.train_from_iterator(texts, trainers.WordLevelTrainer(special_tokens=special))
    tokenizer: Any = PreTrainedTokenizerFast(
        tokenizer_object=words,
        unk_token="<unk>",  # noqa: S106
        pad_token="<pad>",  # noqa: S106
        eos_token="<|im_end|>",  # noqa: S106
        chat_template=CHATML,
    )
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.2,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder
