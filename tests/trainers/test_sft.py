"""The shipped trainer, for real: TRL and PEFT on a tiny random model."""

from __future__ import annotations

import json
import math

import pytest
import torch
from peft import PeftModel
from reccocktail.registry import inspect_adapter, inspect_base
from reccocktail.tasks import generate
from reccocktail.trainers.plugin import TrainerError, TrainingJob
from reccocktail.trainers.sft import SftOptions, SftTrainer
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def train(base, tmp_path):
    """(domains, resume, progress, options): one training run in the test's folder, or in the one named."""

    def run(*domains, folder="run", role="ingredient", resume=False, progress=lambda *_: None, **options):
        job = TrainingJob(
            role=role,
            base_folder=base,
            base_name="tiny",
            domains=tuple(generate(name, users=20) for name in domains or ("skin-care",)),
            folder=tmp_path / folder,
            options=SftOptions(**{"examples": 16, "epochs": 2, "rank": 4, "alpha": 8, "dropout": 0.0} | options),
            resume=resume,
            device="cpu",
            progress=progress,
        )
        job.folder.mkdir(exist_ok=True)
        return SftTrainer().train(job)

    return run


def weights(result) -> dict[str, torch.Tensor]:
    return load_file(result.adapter / "adapter_model.safetensors")


def test_training_gives_an_adapter_that_registration_accepts(train, base):
    result = train()
    facts = inspect_adapter(result.adapter, inspect_base(base), base_names=("tiny",))
    assert (facts.rank, facts.alpha) == (4, 8)
    assert facts.target_modules == tuple(
        sorted(("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"))
    )


def test_training_lowers_the_loss_on_what_was_learned(train, base):
    losses = []
    result = train(
        epochs=15, learning_rate=1e-2, progress=lambda _d, _t, figures: losses.append(figures.get("loss", math.nan))
    )
    seen = [loss for loss in losses if not math.isnan(loss)]
    assert seen[-1] < 0.5 * seen[0]
    assert result.metrics["train_loss"] < seen[0]


def test_only_the_answer_is_learned_from(train, base):
    """The gradient comes from the answer's tokens alone: the very adapter results when TRL is given labels by hand."""
    from peft import LoraConfig, get_peft_model
    from reccocktail.tasks import DEFAULT_TEMPLATE, load_template, questions

    result = train(examples=1, epochs=1, batch_size=1, learning_rate=1e-2, warmup=0.0)
    tokenizer = AutoTokenizer.from_pretrained(base)
    _, (asked,) = questions(generate("skin-care", users=20), "train", load_template(DEFAULT_TEMPLATE), seed=42, limit=1)
    prompt = tokenizer.apply_chat_template(asked.messages, add_generation_prompt=True)["input_ids"]
    whole = tokenizer.apply_chat_template([*asked.messages, {"role": "assistant", "content": asked.answer}])[
        "input_ids"
    ]
    torch.manual_seed(0)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base),
        LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    trained = weights(result)
    # B starts at zero, so after one Adam step every entry of B is ±lr times the sign of its gradient.
    state = {
        name.replace("lora_A.weight", "lora_A.default.weight"): t for name, t in trained.items() if "lora_A" in name
    }
    model.load_state_dict(state, strict=False)
    labels = torch.tensor([[-100] * len(prompt) + whole[len(prompt) :]])
    model(torch.tensor([whole]), labels=labels).loss.backward()
    agree = total = 0
    for name, parameter in model.named_parameters():
        if "lora_B" in name and parameter.grad is not None:
            step = trained[name.replace(".default", "")]
            strong = parameter.grad.abs() > 1e-5
            agree += int((torch.sign(step) == -torch.sign(parameter.grad))[strong].sum())
            total += int(strong.sum())
    assert total > 500
    assert agree / total > 0.98


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(train):
    first, again, other = train(folder="a"), train(folder="b"), train(folder="c", seed=7)
    content = lambda result: (result.adapter / "adapter_model.safetensors").read_bytes()  # noqa: E731
    assert content(first) == content(again)
    assert content(first) != content(other)
    assert (first.adapter / "adapter_config.json").read_bytes() == (again.adapter / "adapter_config.json").read_bytes()


def test_a_killed_run_resumes_and_ends_where_an_undisturbed_one_does(train):
    class Killed(BaseException):
        pass

    def kill(done: int, *_: object) -> None:
        if done == 3:
            raise Killed

    undisturbed = train(folder="undisturbed", save_every=2)
    with pytest.raises(Killed):
        train(folder="killed", save_every=2, progress=kill)
    steps = []
    resumed = train(folder="killed", save_every=2, resume=True, progress=lambda done, *_: steps.append(done))
    assert steps[0] == 3
    for name, tensor in weights(undisturbed).items():
        torch.testing.assert_close(weights(resumed)[name], tensor)


def test_a_half_written_checkpoint_is_passed_over(train, tmp_path):
    train(folder="run", save_every=2)
    newest = max((tmp_path / "run" / "checkpoints").glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))
    (newest / "trainer_state.json").write_text('{"epoch": 1.')
    steps = []
    train(folder="run", save_every=2, resume=True, progress=lambda done, *_: steps.append(done))
    assert steps[0] == 3


def test_a_spirit_is_trained_on_all_its_domains(train):
    result = train("kitchen", "garden", role="spirit", examples=5)
    assert result.context["examples"] == 10
    assert [task["domain"] for task in result.context["tasks"]] == ["kitchen", "garden"]
    assert result.context["role"] == "spirit"


def test_the_adapter_names_its_base_and_no_folder_of_this_machine(train, tmp_path):
    result = train()
    config = (result.adapter / "adapter_config.json").read_text()
    assert json.loads(config)["base_model_name_or_path"] == "tiny"
    assert str(tmp_path.parent) not in config
    assert sorted(path.name for path in result.adapter.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


def test_the_adapter_loads_in_peft(train, base):
    result = train()
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), result.adapter)
    loaded = {n.replace(".default", ""): p for n, p in model.named_parameters() if "lora_" in n}
    assert loaded.keys() == weights(result).keys()


def test_an_example_that_is_too_long_is_refused_with_its_length(train):
    with pytest.raises(TrainerError, match=r"16 of 16 examples are longer than 16 tokens, the longest has \d+"):
        train(max_tokens=16)


def test_target_modules_can_be_named(train):
    result = train(target_modules="q_proj, v_proj")
    assert {name.split(".")[-3] for name in weights(result)} == {"q_proj", "v_proj"}


def test_validation_and_test_interactions_stay_unseen(train):
    result = train(examples=None, epochs=1)
    data = generate("skin-care", users=20)
    assert result.context["examples"] == sum(len(history.items) - 3 for history in data.sequences)


def test_context_repeats_the_run(train):
    context = train().context
    assert context["trainer"] == "sft"
    assert SftOptions.model_validate(context["options"]).rank == 4
    assert set(context["packages"]) == {"torch", "transformers", "peft", "trl"}
    assert all(digest.startswith("sha256:") for task in context["tasks"] for digest in (task["data"], task["task"]))
