"""Where adapters come from. The MLflow folders are laid out as 3.17.2 and 2.22.5 did it for a PEFT Llama."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from reccocktail.registry import Adapter, Base, Registry
from reccocktail.registry.artifacts.sources import AdapterSource, find_adapter_source
from reccocktail.registry.catalog.registration import Labels
from reccocktail.registry.errors import HubError, InvalidArtifactError, RecCocktailError, UsageError

RUN = "0123456789abcdef0123456789abcdef"
UUID = "fedcba9876543210fedcba9876543210"
MODEL = f"m-{UUID}"
COMMIT = "5" * 40

PEFT = "flavors: {transformers: {peft_adaptor: peft}}\n"
# small as a file and in memory, and without end when it is printed
BILLION = "a: &a [x]\n" + "".join(f"{b}: &{b} [{', '.join(['*' + a] * 9)}]\n" for a, b in pairwise("abcdefghijkl"))

MakeAdapter = Callable[..., Path]
Lay = Callable[..., Path]


def manifest(version: int, *, logged: bool, **transformers: Any) -> dict[str, Any]:
    """What `MLmodel` says of a PEFT model that was logged to a run, or only saved."""
    new = version == 3
    content: dict[str, Any] = {
        "flavors": {
            "python_function": {
                "env": {"conda": "conda.yaml", "virtualenv": "python_env.yaml"},
                "loader_module": "mlflow.transformers",
                "python_version": "3.11.7",
            },
            "transformers": {
                "code": None,
                "components": ["tokenizer"],
                "peft_adaptor": "peft",
                "pipeline_model_type": "LlamaForCausalLM",
                "source_model_name": "org/tiny",
                "source_model_revision": COMMIT,
                "task": "text-generation",
            }
            | transformers,
        },
        "is_signature_from_type_hint": False,
        "mlflow_version": "3.17.2" if new else "2.22.5",
        "model_size_bytes": 1234,
        "model_uuid": MODEL if new and logged else UUID,
        "prompts": None,
        "signature": {"inputs": '[{"type": "string", "required": true}]', "params": None},
        "utc_time_created": "2026-03-04 05:06:07.890123",
    }
    if new:
        content["model_id"] = MODEL if logged else None
    if logged:
        content |= {"artifact_path": "file:///elsewhere" if new else "lora", "run_id": RUN}
    return content


def trainer_manifest() -> dict[str, Any]:
    """What `MLmodel` says of a checkpoint that transformers' Trainer logged (HF_MLFLOW_LOG_ARTIFACTS)."""
    artifact = {"path": "artifacts/checkpoint-10", "uri": "/home/trainer/out/checkpoint-10"}
    pyfunc = {
        "artifacts": {"model_path": artifact},
        "loader_module": "mlflow.pyfunc.model",
        "python_model": "python_model.pkl",
    }
    return {"flavors": {"python_function": pyfunc}, "mlflow_version": "2.22.5", "model_uuid": UUID, "run_id": RUN}


def write(folder: Path, content: Mapping[str, Any] | str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    text = content if isinstance(content, str) else yaml.safe_dump(dict(content))
    (folder / "MLmodel").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture
def lay(make_adapter: MakeAdapter) -> Lay:
    """(folder, version, logged, what the transformers flavor has else): a PEFT model as MLflow writes it."""

    def lay_out(folder: Path, *, version: int = 3, logged: bool = True, seed: int = 0, **transformers: Any) -> Path:
        write(folder, manifest(version, logged=logged, **transformers))
        make_adapter(folder / "peft", seed=seed, config={"base_model_name_or_path": "org/tiny"})
        (folder / "peft" / "README.md").write_text("# card\n")
        (folder / "components" / "tokenizer").mkdir(parents=True)
        (folder / "components" / "tokenizer" / "tokenizer.json").write_text("{}")
        for name in ("conda.yaml", "python_env.yaml", "requirements.txt", "LICENSE.txt"):
            (folder / name).write_text("x\n")
        return folder

    return lay_out


@pytest.fixture
def register(registry: Registry, base: Base) -> Callable[[AdapterSource], Adapter]:
    def add(source: AdapterSource) -> Adapter:
        registry.adapters.add(source.folder, labels=Labels(context=source.origin), base=base, role="spirit")
        return registry.adapters.resolve("spirit", base=base.name)

    return add


# folders


def test_a_folder_with_an_adapter_is_the_source_and_tells_no_origin(make_adapter, tmp_path, register):
    folder = make_adapter(tmp_path / "lora")
    source = find_adapter_source(str(folder))
    assert source == AdapterSource(folder, {})
    assert register(source).context == {}


def test_an_adapter_is_taken_before_what_lies_below_it(make_adapter, tmp_path):
    folder = make_adapter(tmp_path / "lora")
    make_adapter(folder / "checkpoint-10")
    assert find_adapter_source(str(folder)).folder == folder


def test_a_revision_belongs_to_the_hub(make_adapter, tmp_path):
    with pytest.raises(UsageError, match="--revision belongs to a Hub repo"):
        find_adapter_source(str(make_adapter(tmp_path / "lora")), revision="main")


def test_a_folder_without_an_adapter_says_what_was_looked_for(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    with pytest.raises(
        InvalidArtifactError, match=r"has no adapter_config\.json, no bundle\.json and no MLmodel .* 2 levels below"
    ):
        find_adapter_source(str(tmp_path))


@pytest.mark.parametrize("source", ["./absent", "/absent", "~/absent", "~no-such-user/lora", "a/b/c", "absent"])
def test_what_is_no_folder_and_no_repo_name_is_refused(source):
    with pytest.raises(UsageError, match="is not a folder, and not a valid name of a Hub repo"):
        find_adapter_source(source)


@pytest.mark.parametrize("source", ["", " ", "\n"])
def test_an_empty_source_is_not_the_working_folder(source, make_adapter, tmp_path, monkeypatch):
    make_adapter(tmp_path / "lora")
    monkeypatch.chdir(tmp_path / "lora")
    with pytest.raises(UsageError, match="no source was named"):
        find_adapter_source(source)


@pytest.mark.parametrize("source", ["/" + "x" * 300, "x/" * 5000], ids=["name", "path"])
def test_a_path_that_no_file_system_takes_is_refused(source):
    with pytest.raises(UsageError, match="cannot be looked at: File name too long") as caught:
        find_adapter_source(source)
    assert len(str(caught.value)) < 300


# MLflow


@pytest.mark.parametrize(
    ("version", "place", "model"),
    [(3, f"models/{MODEL}/artifacts", MODEL), (2, f"{RUN}/artifacts/lora", UUID)],
    ids=["3.x", "2.x"],
)
def test_a_logged_model_is_registered_with_its_run_and_model(lay, tmp_path, register, version, place, model):
    source = find_adapter_source(str(lay(tmp_path / place, version=version)))
    assert source.folder == tmp_path / place / "peft"
    row = register(source)
    assert row.context == {
        "mlflow_run": RUN,
        "mlflow_model": model,
        "mlflow_version": {3: "3.17.2", 2: "2.22.5"}[version],
        "mlflow_created": "2026-03-04 05:06:07.890123",
        "mlflow_base": "org/tiny",
        "mlflow_base_revision": COMMIT,
    }


def test_a_saved_model_has_no_run(lay, tmp_path):
    origin = find_adapter_source(str(lay(tmp_path / "saved", logged=False))).origin
    assert origin["mlflow_model"] == UUID
    assert "mlflow_run" not in origin


def test_a_model_saved_with_its_base_is_registered_without_it(lay, tmp_path, make_base, register):
    folder = lay(tmp_path / "whole", model_binary="model")
    make_base(folder / "model")
    row = register(find_adapter_source(str(folder)))
    assert row.tensors == 8


@pytest.mark.parametrize("version", ["'7'", "7"], ids=["by version", "by alias"])
def test_a_download_from_the_model_registry_tells_its_registered_version(lay, tmp_path, version):
    folder = lay(tmp_path / "download")
    (folder / "registered_model_meta").write_text(f"model_name: beauty-lora\nmodel_version: {version}\n")
    assert find_adapter_source(str(folder)).origin["mlflow_registered"] == "beauty-lora/7"


@pytest.mark.parametrize("version", ["true", "[7]", "1.5"])
def test_a_registered_version_that_is_none_is_refused(lay, tmp_path, version):
    folder = lay(tmp_path / "download")
    (folder / "registered_model_meta").write_text(f"model_name: beauty-lora\nmodel_version: {version}\n")
    with pytest.raises(InvalidArtifactError, match="registered_model_meta: model_version must be a line of text"):
        find_adapter_source(str(folder))


@pytest.mark.parametrize("below", ["artifacts", "artifacts/adapter"])
def test_logged_artifacts_tell_their_run_by_their_place(make_adapter, tmp_path, register, below):
    folder = make_adapter(tmp_path / "mlruns" / "0" / RUN / below)
    assert register(find_adapter_source(str(folder))).context == {"mlflow_run": RUN}


def test_artifacts_of_a_logged_model_tell_the_model_by_their_place(lay, tmp_path):
    folder = lay(tmp_path / "models" / MODEL / "artifacts") / "peft"
    assert find_adapter_source(str(folder)).origin == {"mlflow_model": MODEL}


def test_a_checkpoint_that_the_trainer_logged_is_found_among_its_artifacts(make_adapter, tmp_path, register):
    folder = write(tmp_path / "checkpoint-10", trainer_manifest())
    (folder / "python_model.pkl").write_bytes(b"\x80\x04")
    checkpoint = make_adapter(folder / "artifacts" / "checkpoint-10")
    (checkpoint / "optimizer.pt").write_bytes(b"\x80\x04")
    source = find_adapter_source(str(folder))
    assert source.folder == checkpoint
    assert register(source).context == {"mlflow_run": RUN, "mlflow_model": UUID, "mlflow_version": "2.22.5"}


@pytest.mark.parametrize("above", ["", "artifacts", "artifacts/lora"])
def test_the_one_model_of_a_run_is_found_from_above(lay, tmp_path, above):
    lay(tmp_path / "artifacts" / "lora")
    source = find_adapter_source(str(tmp_path / above))
    assert source.folder == tmp_path / "artifacts" / "lora" / "peft"
    assert source.origin["mlflow_run"] == RUN


def test_three_levels_above_is_too_far(lay, tmp_path):
    lay(tmp_path / "run" / "artifacts" / "lora")
    with pytest.raises(InvalidArtifactError, match="up to 2 levels below"):
        find_adapter_source(str(tmp_path))


def test_several_models_are_named_as_they_have_to_be_given(lay, make_adapter, tmp_path):
    lay(tmp_path / "lora")
    make_adapter(tmp_path / "plain")
    with pytest.raises(UsageError, match="holds 2 adapters: lora, plain") as caught:
        find_adapter_source(str(tmp_path))
    assert caught.value.hint
    assert find_adapter_source(str(tmp_path / "lora")).origin["mlflow_run"] == RUN


def test_many_models_are_counted(make_adapter, tmp_path):
    for step in range(10):
        make_adapter(tmp_path / f"checkpoint-{step}")
    with pytest.raises(UsageError, match=r"holds 10 adapters: checkpoint-0, .*checkpoint-7 and 2 more"):
        find_adapter_source(str(tmp_path))


def test_models_without_an_adapter_do_not_count(lay, tmp_path):
    write(tmp_path / "ranker", {"flavors": {"sklearn": {"pickled_model": "model.pkl"}}})
    lay(tmp_path / "lora")
    assert find_adapter_source(str(tmp_path)).folder == tmp_path / "lora" / "peft"
    with pytest.raises(InvalidArtifactError, match="no MLmodel file that describes a PEFT adapter"):
        find_adapter_source(str(tmp_path / "ranker"))


def test_links_and_hidden_folders_are_not_searched(lay, tmp_path):
    lay(tmp_path / "elsewhere" / "lora")
    (tmp_path / "given" / ".trash").mkdir(parents=True)
    lay(tmp_path / "given" / ".trash" / "lora")
    (tmp_path / "given" / "link").symlink_to(tmp_path / "elsewhere" / "lora")
    with pytest.raises(InvalidArtifactError, match=r"has no adapter_config\.json"):
        find_adapter_source(str(tmp_path / "given"))


def test_a_file_url_is_its_folder(lay, tmp_path):
    folder = lay(tmp_path / "with space" / "artifacts")
    assert find_adapter_source(folder.as_uri()).folder == folder / "peft"
    assert find_adapter_source(f"file://localhost{folder.as_uri()[7:]}").folder == folder / "peft"
    with pytest.raises(UsageError, match="--revision belongs"):
        find_adapter_source(folder.as_uri(), revision="main")


@pytest.mark.parametrize("source", ["file:/absent", "file:///absent/lora"])
def test_a_file_url_of_nothing_is_no_repo_name(source):
    with pytest.raises(UsageError, match="is not a folder"):
        find_adapter_source(source)


@pytest.mark.parametrize(
    "uri",
    [f"runs:/{RUN}/lora", "models:/beauty/1", "models:/beauty@champion", f"models:/{MODEL}", "mlflow-artifacts:/0/x"],
)
def test_what_lies_on_an_mlflow_server_is_to_be_downloaded_first(uri):
    with pytest.raises(UsageError, match="is not a folder on this machine") as caught:
        find_adapter_source(uri)
    assert f"mlflow artifacts download --artifact-uri {uri} --dst-path FOLDER" in str(caught.value.hint)


def test_a_url_of_the_hub_is_to_be_given_as_a_name():
    with pytest.raises(UsageError) as caught:
        find_adapter_source("https://huggingface.co/maker/lora")
    assert "ORG/NAME" in str(caught.value.hint)


# secrets


@pytest.mark.parametrize(
    "url",
    [
        "s3://user:pass@word@bucket/lora?signature=word#word",
        "file://user:word@server/lora",
        "https://user:word@[broken/lora",
        "mlflow-artifacts://user:word@server/1?token=word",
        "user:word@hf.co/a/b",
        "user:word@hf.co/a",
        "user:word@hf.co",
        "word@hf.co/a/b",
    ],
)
def test_no_secret_of_a_url_is_repeated(url):
    with pytest.raises(UsageError) as caught:
        find_adapter_source(url)
    assert "word" not in f"{caught.value} {caught.value.hint}"


def test_what_only_looks_like_a_secret_is_recorded(lay, tmp_path):
    folder = lay(tmp_path / "download", source_model_name="C:\\models\\a@b")
    (folder / "registered_model_meta").write_text("model_name: team@shop\nmodel_version: '7'\n")
    origin = find_adapter_source(str(folder)).origin
    assert (origin["mlflow_registered"], origin["mlflow_base"]) == ("team@shop/7", "C:\\models\\a@b")


def test_no_secret_of_a_url_is_recorded(lay, tmp_path):
    folder = lay(tmp_path / "lora", source_model_name="https://me:word@mirror.example/org/tiny?token=word")
    assert find_adapter_source(str(folder)).origin["mlflow_base"] == "https://mirror.example/org/tiny"


# hostile MLmodel files


@pytest.mark.parametrize("place", ["../outside", "/outside", "peft/../../outside", ".", "..\\outside", "link"])
def test_an_adaptor_outside_of_the_model_is_refused(lay, make_adapter, tmp_path, place):
    make_adapter(tmp_path / "outside")
    folder = lay(tmp_path / "model", peft_adaptor=place)
    (folder / "link").symlink_to(tmp_path / "outside")
    with pytest.raises(InvalidArtifactError, match="which is no folder beside it"):
        find_adapter_source(str(folder))


def test_artifacts_outside_of_the_model_are_refused(make_adapter, tmp_path):
    make_adapter(tmp_path / "outside")
    content = trainer_manifest()
    content["flavors"]["python_function"]["artifacts"]["model_path"]["path"] = "../outside"
    with pytest.raises(InvalidArtifactError, match="which is no folder beside it"):
        find_adapter_source(str(write(tmp_path / "model", content)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("flavors: [", "is not sound YAML"),
        ("flavors: !!python/object/apply:os.getcwd []", "is not sound YAML"),
        ('run_id: !!int ""', "is not sound YAML"),
        ("run_id: !!bool word", "is not sound YAML"),
        ("run_id: !!timestamp word", "is not sound YAML"),
        (f"a: !!float 1{':59' * 200}", "is not sound YAML"),
        ("utc_time_created: 2026-99-99", "is not sound YAML"),
        ("flavors: " + "[" * 100_000, "is nested deeper than 32 levels"),
        ("a: &a {b: c}\nflavors: {<<: [*a, *a]}", "has a YAML merge key"),
        ("a: &a {b: c}\nflavors: {!!merge x: *a}", "has a YAML merge key"),
        ("a: &a {b: c}\nflavors: {? !!merge y : [*a, *a]}", "has a YAML merge key"),
        ("flavors: &a [*a, *a]", "flavors must be a mapping, not list"),
        (f"{BILLION}flavors: *l", "flavors must be a mapping, not list"),
        ("- flavors", "must hold a YAML mapping, not list"),
        ("", "must hold a YAML mapping, not NoneType"),
        ("flavors: transformers", "flavors must be a mapping"),
        ("flavors: {transformers: [peft]}", "transformers must be a mapping"),
        ("flavors: {transformers: {peft_adaptor: 3}}", "peft_adaptor must be a line of text"),
        ("flavors: {python_function: {artifacts: {1: x}}}", "1 must be a mapping"),
        (f"{BILLION}{PEFT}run_id: *l", "run_id must be a line of text, not list"),
        (f"{PEFT}run_id: 12", "run_id must be a line of text"),
        (PEFT + 'run_id: "a\\0b"', "run_id must be a line of text"),
        (PEFT + 'run_id: "\\x1b[2J"', "run_id must be a line of text"),
        (f"{PEFT}run_id: {'a' * 501}", "run_id must be a line of text"),
        (f"signature: '{'a' * (256 << 10)}'", "is larger than"),
    ],
)
def test_a_malformed_mlmodel_is_refused_by_name(tmp_path, content, message):
    with pytest.raises(InvalidArtifactError, match=f"MLmodel: .*{message}"):
        find_adapter_source(str(write(tmp_path / "model", content)))


def test_aliases_that_mlflow_writes_for_shared_metadata_are_read(lay, tmp_path):
    folder = lay(tmp_path / "model")
    with (folder / "MLmodel").open("a") as file:
        file.write("metadata:\n  a: &id001\n    k:\n    - '<<'\n  b: *id001\n")
    assert find_adapter_source(str(folder)).origin["mlflow_run"] == RUN


def test_bytes_that_are_no_text_are_refused(tmp_path):
    (tmp_path / "MLmodel").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InvalidArtifactError, match="is not sound YAML"):
        find_adapter_source(str(tmp_path))


@pytest.mark.parametrize("name", ["peft", "nope", "x" * 400, "x/" * 200], ids=["peft", "nope", "long", "deep"])
def test_an_adaptor_that_is_not_there_is_refused_by_name(tmp_path, name):
    folder = write(tmp_path / "model", manifest(3, logged=True, peft_adaptor=name))
    with pytest.raises(InvalidArtifactError, match=f"MLmodel: places the adapter in '{name[:70]}.*no folder beside it"):
        find_adapter_source(str(folder))


def test_an_adaptor_that_is_a_file_is_refused_by_name(tmp_path):
    folder = write(tmp_path / "model", manifest(3, logged=True))
    (folder / "peft").write_text("")
    with pytest.raises(InvalidArtifactError, match="places the adapter in 'peft'"):
        find_adapter_source(str(folder))


def test_an_artifact_of_a_name_that_no_file_can_have_is_refused(tmp_path):
    content = trainer_manifest()
    content["flavors"]["python_function"]["artifacts"]["model_path"]["path"] = "x" * 400
    with pytest.raises(InvalidArtifactError, match=r"xxx/adapter_config\.json: cannot be read: File name too long"):
        find_adapter_source(str(write(tmp_path / "model", content)))


def test_links_inside_of_an_adaptor_are_not_followed(lay, tmp_path, register):
    folder = lay(tmp_path / "model")
    weights = folder / "peft" / "adapter_model.safetensors"
    weights.replace(tmp_path / "weights")
    weights.symlink_to(tmp_path / "weights")
    with pytest.raises(InvalidArtifactError, match="a link that leads out of the folder"):
        register(find_adapter_source(str(folder)))


def test_an_adapter_of_another_base_is_refused_by_its_own_config(lay, tmp_path, register):
    folder = lay(tmp_path / "model")
    config = folder / "peft" / "adapter_config.json"
    config.write_text(config.read_text().replace("org/tiny", "org/other"))
    with pytest.raises(RecCocktailError, match="was made for 'org/other'"):
        register(find_adapter_source(str(folder)))


# the Hub


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def pushed(loopback_hub: Any, make_adapter: MakeAdapter, tmp_path: Path) -> list[str]:
    """Two commits of maker/lora, on the branches `old` and `main`."""
    commits = [loopback_hub.add_repo("maker/lora", files(make_adapter(tmp_path / f"v{n}", seed=n))) for n in (1, 2)]
    loopback_hub.repos["maker/lora"].branches["old"] = commits[0]
    return commits


@pytest.mark.parametrize(("revision", "number"), [(None, 1), ("main", 1), ("old", 0)])
def test_a_branch_is_registered_as_the_commit_that_it_is_now(pushed, register, revision, number):
    source = find_adapter_source("maker/lora", revision=revision)
    assert register(source).context == {"hub_repo": "maker/lora", "hub_commit": pushed[number]}


def test_a_commit_in_the_cache_needs_no_network(loopback_hub, pushed, register):
    find_adapter_source("maker/lora", revision="old")
    loopback_hub.close()
    source = find_adapter_source("maker/lora", revision=pushed[0])
    assert register(source).context == {"hub_repo": "maker/lora", "hub_commit": pushed[0]}


def test_a_missing_revision_is_named(pushed):
    with pytest.raises(HubError, match="no revision 'v9'"):
        find_adapter_source("maker/lora", revision="v9")


def test_a_folder_is_taken_before_a_repo_of_that_name(loopback_hub, pushed, make_adapter, tmp_path, monkeypatch):
    folder = make_adapter(tmp_path / "maker" / "lora")
    monkeypatch.chdir(tmp_path)
    assert find_adapter_source("maker/lora").folder.resolve() == folder
    assert not loopback_hub.requests
