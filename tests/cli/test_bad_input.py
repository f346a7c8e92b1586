"""What is wrong is said, by name, and nothing is left behind: no row, no tree, nothing staged."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

Refused = Callable[..., str]


def _kept(home: Path) -> dict[str, Any] | None:
    """Every table's rows, and what the store and the runs hold; read without our code."""
    if not home.exists():
        return None
    with closing(sqlite3.connect(home / "registry.sqlite")) as database:
        names = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        rows = {name: database.execute(f"SELECT * FROM {name}").fetchall() for name in names}
    folders = ("store/trees/*", "store/blobs/*/*/*", "store/staging/*", "runs/*", "evaluations/*")
    return {"rows": rows, "files": sorted(str(p.relative_to(home)) for glob in folders for p in home.glob(glob))}


def _refusal(shell: Any, words: tuple[object, ...], exit_code: int) -> str:
    before = _kept(shell.home)
    told = shell(*words, code=exit_code)
    asked = shell(*words, "--json", code=exit_code)
    assert _kept(shell.home) == before
    assert not told.out
    assert all(character.isprintable() or character == "\n" for character in told.err)
    error = asked.json["error"]
    assert error["hint"] != ""
    lines = [line for line in told.err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, told.err
    return f"{error['message']} | {error['hint']}"


@pytest.fixture
def refused(prepared: Any) -> Refused:
    """(words, exit_code): runs the command for people and for programs, and gives message and hint of the refusal."""

    def run(*words: object, exit_code: int = 1) -> str:
        return _refusal(prepared, words, exit_code)

    return run


@pytest.fixture
def spoiled(loras: dict[str, Path], tmp_path: Path) -> Path:
    """A good adapter, for the test to spoil."""
    return Path(shutil.copytree(loras["newer"], tmp_path / "spoiled"))


@pytest.fixture
def add(refused: Refused, spoiled: Path) -> Callable[[], str]:
    """Registers the spoiled adapter, which is refused."""
    return lambda: refused("adapter", "add", spoiled, "--base", "tiny", "--domain", "skin-care")


def _configure(adapter: Path, **changes: object) -> None:
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


# adapters


def test_a_folder_without_adapter_config(add: Callable[[], str], spoiled: Path) -> None:
    (spoiled / "adapter_config.json").unlink()
    assert f"{spoiled}: has no adapter_config.json" in add()


def test_a_pickled_adapter(add: Callable[[], str], spoiled: Path) -> None:
    (spoiled / "adapter_model.safetensors").rename(spoiled / "adapter_model.bin")
    message = add()
    assert "adapter_model.bin: is a pickle, which can run code when it is opened" in message
    assert "save_pretrained" in message


def test_truncated_safetensors(add: Callable[[], str], spoiled: Path) -> None:
    file = spoiled / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    message = add()
    assert str(file) in message
    assert "truncated" in message


def test_a_header_that_is_cut_off(add: Callable[[], str], spoiled: Path) -> None:
    file = spoiled / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    assert "goes beyond the file of 100: truncated?" in add()


def test_an_adapter_for_another_base_model(add: Callable[[], str], spoiled: Path) -> None:
    _configure(spoiled, base_model_name_or_path="acme/another-model")
    message = add()
    assert "made for 'acme/another-model', not for 'tiny'" in message
    assert "--allow-base-mismatch" in message


def test_shapes_of_another_base_model(add: Callable[[], str], spoiled: Path) -> None:
    file = spoiled / "adapter_model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if "q_proj.lora_A" in name)
    save_file(tensors | {name: np.zeros((4, 48), dtype="float32")}, file, metadata={"format": "pt"})
    message = add()
    assert name in message
    assert "a weight of shape [32, 48]" in message
    assert "is [32, 32]" in message


def test_a_rank_that_disagrees_with_the_tensors(add: Callable[[], str], spoiled: Path) -> None:
    _configure(spoiled, r=8)
    assert "has rank 4, but adapter_config.json says 8" in add()


def test_weights_that_are_not_numbers(add: Callable[[], str], spoiled: Path) -> None:
    file = spoiled / "adapter_model.safetensors"
    tensors = load_file(file)
    name = next(iter(tensors))
    tensors[name][0, 0] = np.nan
    save_file(tensors, file, metadata={"format": "pt"})
    message = add()
    assert repr(name) in message
    assert "1 of" in message
    assert "NaN or infinite" in message


def test_an_adapter_for_an_unknown_domain(refused: Refused, spoiled: Path) -> None:
    message = refused("adapter", "add", spoiled, "--base", "tiny", "--domain", "absent")
    assert "there is no domain 'absent'" in message
    assert "reccocktail domain add absent" in message


def test_an_adapter_for_an_unknown_base(refused: Refused, spoiled: Path) -> None:
    message = refused("adapter", "add", spoiled, "--base", "absent", "--spirit")
    assert "there is no base model 'absent'" in message
    assert "reccocktail base list" in message


@pytest.mark.parametrize("options", [(), ("--spirit", "--domain", "skin-care")])
def test_an_adapter_that_is_neither_or_both(refused: Refused, spoiled: Path, options: tuple[str, ...]) -> None:
    message = refused("adapter", "add", spoiled, "--base", "tiny", *options, exit_code=2)
    assert "either --spirit or --domain NAME" in message


def test_an_adapter_path_that_does_not_exist(refused: Refused, tmp_path: Path) -> None:
    path = tmp_path / "absent"
    message = refused("adapter", "add", path, "--base", "tiny", "--spirit", exit_code=2)
    assert f"'{path}' is not a folder" in message


def test_a_file_where_an_adapter_folder_is_meant(refused: Refused, spoiled: Path) -> None:
    file = spoiled / "adapter_model.safetensors"
    message = refused("adapter", "add", file, "--base", "tiny", "--spirit", exit_code=2)
    assert f"'{file}' is not a folder" in message


@pytest.mark.parametrize("metric", ["HR@1", "HR@1=good", "HR@1=nan"])
def test_a_metric_that_is_no_figure(refused: Refused, spoiled: Path, metric: str) -> None:
    refused("adapter", "add", spoiled, "--base", "tiny", "--spirit", "--metric", metric, exit_code=2)


@pytest.mark.parametrize("text", ["skin-care@", "@v1", "Skin Care", "skin-care@v0", "skin-care@v1@v2", ""])
def test_text_that_is_no_reference(refused: Refused, text: str) -> None:
    message = refused("adapter", "show", text, exit_code=2)
    assert f"{text!r} is not a reference" in message
    assert "NAME, NAME@vN or NAME@ALIAS" in message


def test_a_version_that_is_not_there(refused: Refused) -> None:
    assert "there is no 'skin-care@v7'" in refused("adapter", "show", "skin-care@v7")


def test_an_empty_adapter_source_is_not_the_working_folder(refused: Refused) -> None:
    message = refused("adapter", "add", "", "--base", "tiny", "--spirit", exit_code=2)
    assert "no source was named" in message


@pytest.mark.parametrize("words", [("adapter", "add"), ("base", "add", "other")], ids=" ".join)
@pytest.mark.parametrize("source", ["https://user:tok3n@hf.co/a/b", "user:tok3n@hf.co/a/b", "user:tok3n@hf.co/a"])
def test_no_secret_of_a_source_is_told(refused: Refused, words: tuple[str, ...], source: str) -> None:
    options = ("--base", "tiny", "--spirit") if words[0] == "adapter" else ()
    message = refused(*words, source, *options, exit_code=2)
    assert "hf.co/a" in message
    assert "tok3n" not in message


def test_a_source_that_is_too_long_for_a_path(refused: Refused) -> None:
    for words in (("adapter", "add", "x" * 5000, "--base", "tiny", "--spirit"), ("base", "add", "other", "x" * 5000)):
        assert "cannot be looked at: File name too long" in refused(*words, exit_code=2)


# base models


@pytest.mark.parametrize("source", ["", "  "])
def test_an_empty_base_source_is_not_the_working_folder(prepared: Any, tiny_base: Path, source: str) -> None:
    prepared.folder = tiny_base
    assert "no source was named" in _refusal(prepared, ("base", "add", "other", source), 2)


def test_a_base_path_that_does_not_exist(refused: Refused, tmp_path: Path) -> None:
    message = refused("base", "add", "other", tmp_path / "absent", exit_code=2)
    assert f"'{tmp_path / 'absent'}' is not a folder" in message


def test_an_empty_folder_as_base(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert f"{tmp_path / 'empty'}: has no config.json" in refused("base", "add", "other", tmp_path / "empty")


def test_a_base_with_pickled_weights_alone(refused: Refused, tiny_base: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_base, tmp_path / "pickled"))
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    message = refused("base", "add", "other", folder)
    assert "has neither model.safetensors nor model.safetensors.index.json" in message
    assert "pytorch_model.bin is a pickle" in message


def test_a_base_name_with_other_content(prepared: Any, tiny_base: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_base, tmp_path / "changed"))
    (folder / "generation_config.json").write_text('{"temperature": 0.1}')
    before = _kept(prepared.home)
    answer = prepared("base", "add", "tiny", folder, code=1)
    after = _kept(prepared.home)
    assert "base model 'tiny' is already there with other content" in answer.err
    assert before
    assert after
    assert after["rows"] == before["rows"]
    # Equality of content is known only once it is hashed, so its bytes are there by then; `store gc` takes them away.
    assert len(after["files"]) > len(before["files"])


# domains and recipes


@pytest.mark.parametrize("name", ["bad\x1b[31m", "tab\there", "line\nbreak", "Skin Care", "../up"])
def test_a_domain_name_with_control_characters_or_worse(refused: Refused, name: str) -> None:
    message = refused("domain", "add", name, exit_code=2)
    assert f"{name!r} cannot be the name of a domain" in message
    assert "a-z, 0-9 and -" in message


def test_a_nul_which_no_shell_can_pass_is_wrong_usage(refused: Refused) -> None:
    refused("domain", "add", "null\x00", exit_code=2)


def test_control_characters_in_a_name_that_is_looked_up(refused: Refused) -> None:
    refused("domain", "show", "bad\x1b[31m")


def test_a_broken_line_in_the_data_of_a_domain(refused: Refused, data: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(data / "kitchen", tmp_path / "broken"))
    file = folder / "sequences.jsonl"
    lines = file.read_text().splitlines()
    lines[3] = '{"user_id": "somebody", "items": '
    file.write_text("\n".join(lines))
    assert f"{file}, line 4: " in refused("domain", "add", "kitchen-2", "--data", folder)


def test_a_recipe_with_an_unknown_key(refused: Refused, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("adaptive: {promts: 10}\n")
    for words in (
        ("recipe", "check", file),
        ("domain", "add", "kitchen", "--recipe", file),
        ("build", "request", "skin-care", "--recipe", file, "--wait"),
    ):
        message = refused(*words)
        assert f"recipe {file}: adaptive.promts: unknown key" in message
        assert "reccocktail recipe show default" in message


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("method: average\ncoefficients: {spirit: 1}", "method: there is no method 'average'; one of linear, factor"),
        ("method: linear", "give either `coefficients` or `adaptive`"),
        ("coefficients: {spirit: .nan}", "coefficients.spirit.number: Input should be a finite number"),
        ("coefficients: [1, 2", "is not valid YAML"),
        ("- 1", "holds a list, not a mapping"),
    ],
)
def test_a_recipe_that_says_nothing_sensible(refused: Refused, tmp_path: Path, text: str, wrong: str) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    assert wrong in refused("recipe", "check", tmp_path / "mine.yaml")


def test_a_recipe_file_that_is_not_there(refused: Refused, tmp_path: Path) -> None:
    assert "cannot be read: No such file" in refused("recipe", "check", tmp_path / "absent.yaml")


# training, building, publishing


def test_training_with_an_unknown_option(refused: Refused) -> None:
    message = refused("train", "skin-care", "-o", "epoch=3")
    assert "trainer 'sft': unknown option 'epoch'; did you mean 'epochs'?" in message
    assert "reccocktail trainers show sft" in message


@pytest.mark.parametrize("trainer", ["laser", "reclora"])
def test_training_with_an_unknown_option_of_its_recommender(refused: Refused, trainer: str) -> None:
    message = refused("train", "skin-care", "--trainer", trainer, "-o", "recommender=epoch=1")
    assert "unknown option 'epoch'; did you mean 'epochs'?" in message


def test_a_recipe_file_by_another_ending_or_in_another_encoding(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "mix.txt").write_text("method: linear")
    (tmp_path / "mix.yaml").write_bytes(b"method: linear\nnote: caf\xe9")
    for name, wrong in (("mix.txt", ".yaml"), ("mix.yaml", "line 2: is not UTF-8")):
        assert wrong in refused("build", "request", "skin-care", "--recipe", tmp_path / name)


def test_a_users_lora_where_there_are_no_ratings_to_learn_one_from(prepared: Any) -> None:
    for domain, code in (("kitchen", "not_found"), ("skin-care", "wrong_kind")):
        error = prepared("personalise", domain, "42", "-o", "there", "--json", code=1).json["error"]
        assert (error["code"], "no ratings" in error["message"], "reclora" in error["hint"]) == (code, True, False)


def test_training_with_an_unknown_trainer(refused: Refused) -> None:
    message = refused("train", "skin-care", "--trainer", "absent")
    assert "there is no trainer 'absent'; installed: laser, reclora, sft" in message


def test_a_build_that_needs_an_ingredient_where_there_is_none(refused: Refused) -> None:
    message = refused("build", "request", "kitchen", "--recipe", "average", "--wait")
    assert "'kitchen' has no adapter yet" in message
    assert "--domain kitchen" in message


@pytest.mark.parametrize("words", [(), ("skin-care", "--all"), ("--all", "--stale")])
def test_a_build_request_that_names_nothing_or_twice(refused: Refused, words: tuple[str, ...]) -> None:
    assert "name domains, or use --all or --stale" in refused("build", "request", *words, exit_code=2)


def test_publishing_a_domain_without_a_build(refused: Refused) -> None:
    message = refused("publish", "skin-care", "--to", "acme/skin-care")
    assert "domain 'skin-care' has no succeeded build" in message
    assert "reccocktail build request skin-care --wait" in message


def test_publishing_what_is_neither_a_domain_nor_a_build(refused: Refused) -> None:
    message = refused("publish", "skin-car", "--to", "acme/skin-care")
    assert "there is no domain and no build 'skin-car'" in message
    assert "NAME@v1" in message


def test_exporting_over_a_folder_that_holds_something(built: Any, data: Path) -> None:
    newest = built("build", "list", "--json").json[0]["id"]
    assert f"{data} exists and is not an empty folder" in _refusal(built, ("build", "export", newest, data), 1)


# merging folders


def test_a_merge_without_a_weight(bare: Any, tiny_base: Path, loras: dict[str, Path], tmp_path: Path) -> None:
    both = ("-a", loras["spirit"], "-a", loras["newer"])
    message = _refusal(bare, ("merge", tiny_base, *both, "-o", tmp_path / "out"), 2)
    assert f"{loras['spirit']} has no weight" in message
    assert not (tmp_path / "out").exists()


def test_a_merge_into_a_folder_that_holds_something(
    bare: Any, tiny_base: Path, loras: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("keep me")
    message = _refusal(bare, ("merge", tiny_base, "-a", f"{loras['spirit']}=1", "-o", out), 1)
    assert f"{out} exists and is not an empty folder" in message
    assert [path.name for path in out.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("weight", ["much", "nan", "inf"])
def test_a_merge_with_a_weight_that_is_no_finite_number(
    bare: Any, tiny_base: Path, loras: dict[str, Path], tmp_path: Path, weight: str
) -> None:
    words = ("merge", tiny_base, "-a", f"{loras['spirit']}={weight}", "-o", tmp_path / "out")
    message = _refusal(bare, words, 2 if weight == "much" else 1)
    assert "not a number" in message if weight == "much" else f"is {weight}, not a finite number" in message
    assert not any(path.name.startswith((".out", "out")) for path in tmp_path.iterdir())


def test_a_merge_of_a_base_that_is_not_there(bare: Any, loras: dict[str, Path], tmp_path: Path) -> None:
    words = ("merge", tmp_path / "absent", "-a", f"{loras['spirit']}=1", "-o", tmp_path / "out")
    assert f"{tmp_path / 'absent'}: is not a folder" in _refusal(bare, words, 1)


# the house itself


def test_a_home_that_was_never_initialised(bare: Any) -> None:
    message = _refusal(bare, ("status",), 1)
    assert "there is no database" in message
    assert "reccocktail init" in message
    assert not bare.home.exists()


def test_a_store_that_is_gone(prepared: Any) -> None:
    shutil.move(prepared.home / "store", prepared.home / "elsewhere")
    assert f"{prepared.home / 'store'} is not an artifact store" in _refusal(prepared, ("base", "list"), 1)


def test_a_database_from_a_newer_version(prepared: Any) -> None:
    with closing(sqlite3.connect(prepared.home / "registry.sqlite")) as database, database:
        database.execute("UPDATE alembic_version SET version_num = '9999'")
    for words in (("status",), ("init",), ("db", "upgrade"), ("db", "current"), ("db", "check")):
        message = _refusal(prepared, words, 1)
        assert "revision 9999, which this version does not know" in message
        assert "upgrade reccocktail" in message


def test_a_settings_file_with_an_unknown_key(prepared: Any) -> None:
    (prepared.folder / "reccocktail.toml").write_text('hoem = "x"\n')
    message = _refusal(prepared, ("status",), 2)
    assert "reccocktail.toml: unknown key 'hoem'" in message
    assert "known keys are home" in message


def test_a_password_in_a_database_url_is_not_told(bare: Any) -> None:
    url = "postgresql+psycopg://me:hunter2@127.0.0.1:1/registry"
    answer = bare("--database-url", url, "doctor", code=1)
    assert "hunter2" not in answer.out + answer.err
