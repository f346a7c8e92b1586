"""Whose tokenizer and chat template a merged checkpoint gets."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from reccocktail.engine.errors import MergeError
from reccocktail.engine.merging.reports import MergeReport
from reccocktail.engine.merging.standalone import MergeOptions, WeightedFolder, folder_digest, merge_folders
from reccocktail.registry import Registry, Settings
from reccocktail.registry.artifacts.allowlist import adapter_files
from reccocktail.registry.catalog.registration import Checks
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

WORDS = 80
BASE_TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
OWN_TEMPLATE = "<|rec|> " + BASE_TEMPLATE


def _tokenizer(added: tuple[str, ...] = (), template: str | None = BASE_TEMPLATE) -> Any:
    words = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"w{number}": number for number in range(3, WORDS)}
    plain = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made: Any = PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="<unk>", eos_token="</s>", pad_token="</s>")
    if added:
        made.add_special_tokens({"additional_special_tokens": list(added)})
    if template is not None:
        made.chat_template = template
    return made


@pytest.fixture
def padded(base: Path, tmp_path: Path) -> Path:
    """A base whose embedding has more rows than its tokenizer has tokens, as Qwen's."""
    folder = shutil.copytree(base, tmp_path / "padded")
    for path in folder.glob("*token*"):
        path.unlink()
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    assert json.loads((folder / "config.json").read_text())["vocab_size"] > WORDS + 1
    _tokenizer().save_pretrained(str(folder))
    return folder


@pytest.fixture
def tuned(make_adapter: Callable[..., Path], base: Path, tmp_path: Path) -> Callable[..., Path]:
    """(name, tokenizer): a LoRA of that name with the tokenizer beside it."""

    def make(name: str, tokenizer: Any, which: int = 1) -> Path:
        folder = shutil.copytree(make_adapter(base, which), tmp_path / name)
        if tokenizer is not None:
            tokenizer.save_pretrained(str(folder))
        return folder

    return make


def _merged(base: Path, out: Path, *adapters: Path) -> MergeReport:
    parts = [WeightedFolder(folder, 1.0) for folder in adapters]
    report = merge_folders(base, parts, out, MergeOptions(allow_base_mismatch=True))
    assert isinstance(report, MergeReport)
    return report


def test_tokens_within_the_padding_and_a_template_come_from_the_adapter(
    padded: Path, tuned: Any, tmp_path: Path
) -> None:
    folder = tuned("own", _tokenizer(("<|rec|>",), OWN_TEMPLATE))
    report = _merged(padded, tmp_path / "out", folder)
    made, wanted = (AutoTokenizer.from_pretrained(place) for place in (tmp_path / "out", folder))
    assert made.convert_tokens_to_ids("<|rec|>") == WORDS
    chat = [{"role": "user", "content": "w7"}]
    assert made.apply_chat_template(chat)["input_ids"] == wanted.apply_chat_template(chat)["input_ids"]
    assert report.tokenizer == "own"
    assert any("own" in note for note in report.notes)
    assert "own" in (tmp_path / "out" / "README.md").read_text().partition("tokenizer or chat template")[2][:40]
    said = json.loads((tmp_path / "out" / "provenance.json").read_text())
    names = adapter_files(folder, with_tokenizer=True)[0]
    assert folder_digest(folder, names).removeprefix("sha256:") in json.dumps(said)


def test_the_bases_own_tokenizer_beside_an_adapter_changes_nothing(padded: Path, tuned: Any, tmp_path: Path) -> None:
    alone, beside = tuned("alone", None), tuned("beside", _tokenizer())
    (beside / "tokenizer.json").write_text(json.dumps(json.loads((beside / "tokenizer.json").read_text())))
    beside = beside.rename(tmp_path / "other" if (tmp_path / "other").mkdir() else tmp_path / "other" / "alone")
    for name, folder in (("1", alone), ("2", beside)):
        report = _merged(padded, tmp_path / name, folder)
        assert report.tokenizer is None
        assert report.notes == ()
    one, two = ({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in ("1", "2"))
    assert {name for name in one if one[name] != two[name]} <= {"README.md"}  # which names the folder it is in


def test_a_template_alone_goes_with_the_bases_tokenizer(padded: Path, tuned: Any, tmp_path: Path) -> None:
    folder = tuned("worded", None)
    (folder / "chat_template.jinja").write_text(OWN_TEMPLATE)
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "rag.jinja").write_text("R")
    report = _merged(padded, tmp_path / "out", folder)
    made = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert made.chat_template == {"default": OWN_TEMPLATE, "rag": "R"} or made.chat_template == OWN_TEMPLATE
    assert (tmp_path / "out" / "additional_chat_templates" / "rag.jinja").read_text() == "R"
    assert len(made) == WORDS
    assert report.tokenizer == "worded"


def test_a_tokenizer_without_a_template_keeps_the_bases(padded: Path, tuned: Any, tmp_path: Path) -> None:
    report = _merged(padded, tmp_path / "out", tuned("own", _tokenizer(("<|rec|>",), None)))
    made = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert (made.chat_template, len(made)) == (BASE_TEMPLATE, WORDS + 1)
    assert any("no chat template" in note for note in report.notes)


@pytest.mark.parametrize("kind", ["too long", "unread", "no words"])
def test_what_does_not_fit_leaves_the_bases_and_is_said(kind: str, padded: Path, tuned: Any, tmp_path: Path) -> None:
    rows = json.loads((padded / "config.json").read_text())["vocab_size"]
    folder = tuned(
        "own", _tokenizer(tuple(f"<|{number}|>" for number in range(rows)) if kind == "too long" else ("<|rec|>",))
    )
    if kind == "unread":
        (folder / "tokenizer.json").write_text('{"model": 3}')
    if kind == "no words":
        (folder / "tokenizer.json").unlink()
        (folder / "chat_template.jinja").unlink()
    report = _merged(padded, tmp_path / "out", folder)
    assert report.tokenizer is None
    assert len(AutoTokenizer.from_pretrained(tmp_path / "out")) == WORDS
    assert [note for note in report.notes if "own" in note and "base's" in note]


def test_of_two_tokenizers_the_one_with_more_tokens_is_taken_and_the_other_named(
    padded: Path, tuned: Any, tmp_path: Path
) -> None:
    more = tuned("more", _tokenizer(("<|rec|>", "<|end|>")), 1)
    less = tuned("less", _tokenizer(("<|rec|>",)), 2)
    report = _merged(padded, tmp_path / "out", more, less)
    assert report.tokenizer == "more"
    assert AutoTokenizer.from_pretrained(tmp_path / "out").convert_tokens_to_ids("<|end|>") == WORDS + 1
    assert any("less" in note for note in report.notes)


def test_of_two_with_the_same_tokens_the_last_is_taken(padded: Path, tuned: Any, tmp_path: Path) -> None:
    one = tuned("spirit", _tokenizer(template="A" + BASE_TEMPLATE), 1)
    two = tuned("ingredient", _tokenizer(template="B" + BASE_TEMPLATE), 2)
    assert _merged(padded, tmp_path / "out", one, two).tokenizer == "ingredient"
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == "B" + BASE_TEMPLATE


def test_two_tokenizers_that_contradict_each_other_are_refused(padded: Path, tuned: Any, tmp_path: Path) -> None:
    one, two = tuned("one", _tokenizer(("<|rec|>",)), 1), tuned("two", _tokenizer(("<|other|>",)), 2)
    with pytest.raises(MergeError, match=f"token {WORDS}"):
        _merged(padded, tmp_path / "out", one, two)
    assert not (tmp_path / "out").exists()


def test_module_folders_and_the_file_that_names_them_stay_behind_together(
    padded: Path, tuned: Any, tmp_path: Path
) -> None:
    (padded / "modules.json").write_text('[{"path": "1_Pooling"}]')
    (padded / "1_Pooling").mkdir()
    (padded / "1_Pooling" / "config.json").write_text("{}")
    report = _merged(padded, tmp_path / "out", tuned("plain", None))
    assert {"modules.json", "1_Pooling"} <= {*report.left_out}
    assert not (tmp_path / "out" / "modules.json").exists()


def test_registration_keeps_a_tokenizer_that_differs_and_no_other(padded: Path, tuned: Any, tmp_path: Path) -> None:
    settings = Settings.load(home=tmp_path / "home", cwd=tmp_path, environ={"HOME": str(tmp_path)})
    with Registry.create(settings) as registry:
        base = registry.bases.add("padded", padded, source="org/padded")
        for name, tokenizer, kept in (
            ("own", _tokenizer(("<|rec|>",)), True),
            ("same", _tokenizer(), False),
            ("worded", _tokenizer(template=OWN_TEMPLATE), True),
        ):
            added = registry.adapters.add(
                tuned(name, tokenizer, 1 + len(name)), checks=Checks(allow_base_mismatch=True), base=base, role="spirit"
            )
            assert ("tokenizer.json" in registry.store.tree(added.digest).files) == kept
            assert ("tokenizer.json" in added.skipped) != kept
