"""The model card: metadata that the Hub's own loader reads, text that no title can break."""

from __future__ import annotations

import ast
from dataclasses import replace

import pytest
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from reccocktail.engine.merging.card import (
    CardAdaptation,
    CardBound,
    CardData,
    CardEvaluation,
    CardFacts,
    CardInput,
    CardMetric,
    CardPrompt,
    CardTask,
    CardVerdict,
    render_card,
)
from reccocktail.registry.errors import UsageError

FACTS = CardFacts(
    title="Beauty",
    domain="beauty",
    domain_title="Beauty and care",
    base_name="SmolLM2",
    base_source="HuggingFaceTB/SmolLM2-135M-Instruct",
    license="apache-2.0",
    method="linear",
    coefficients={"spirit": 0.3, "beauty@v2": 0.7},
    inputs=(CardInput("spirit", "spirit@v1", "sha256:" + "a" * 64), CardInput("ingredient", "beauty@v2", "sha256:b")),
    adaptive=CardAdaptation("entropy", 2.5, 1.25, prompts=50, tokens=3, plots=("adaptation.png", "coefficients.png")),
    metrics={"cocktail": {"HR@1": 0.41321, "users": 300}, "average": {"HR@1": 0.3722}},
    dtype="bfloat16",
    recipe="reccocktail",
    reccocktail_version="0.1.0",
)


def tables(card: ModelCard) -> list[list[list[str]]]:
    """The cells of every table, as a Markdown parser reads them."""
    found: list[list[list[str]]] = []
    inside = False
    for token in MarkdownIt("commonmark").enable("table").parse(card.text):
        if token.type == "table_open":
            found.append([])
        elif token.type == "tr_open":
            found[-1].append([])
        elif token.type in ("th_open", "td_open"):
            inside = True
        elif token.type == "inline" and inside:
            found[-1][-1].append("".join(child.content for child in token.children or ()))
            inside = False
    return found


def headings(card: ModelCard) -> list[str]:
    tokens = MarkdownIt("commonmark").parse(card.text)
    after = [tokens[i + 1] for i, token in enumerate(tokens) if token.type == "heading_open"]
    return ["".join(child.content for child in token.children or ()) for token in after]


def test_the_hubs_loader_reads_back_the_metadata():
    card = ModelCard(render_card(FACTS))
    assert card.data.to_dict() == {
        "base_model": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "base_model_relation": "merge",
        "library_name": "transformers",
        "license": "apache-2.0",
        "pipeline_tag": "text-generation",
        "tags": ["merge", "lora", "recommendation", "reccocktail"],
    }


@pytest.mark.parametrize("source", [None, "/home/ada/models/smol", "./smol", "~/smol", "gs://bucket/smol"])
def test_a_base_from_elsewhere_is_no_base_model_of_the_hub_and_its_place_is_not_told(source):
    text = render_card(replace(FACTS, base_source=source, license=None))
    data = ModelCard(text).data.to_dict()
    assert not {"base_model", "base_model_relation", "license"} & set(data)
    assert source is None or source not in text
    assert "Base model: SmolLM2." in text


def test_every_input_stands_in_the_table_with_its_coefficient_and_digest():
    mixture, measured = tables(ModelCard(render_card(FACTS)))
    assert mixture[1:] == [
        ["spirit", "spirit@v1", "0.3000", "sha256:" + "a" * 64],
        ["ingredient", "beauty@v2", "0.7000", "sha256:b"],
    ]
    assert measured == [["", "HR@1", "users"], ["cocktail", "0.4132", "300"], ["average", "0.3722", ""]]


def test_figures_have_the_digits_that_their_size_bears():
    _, measured = tables(ModelCard(render_card(replace(FACTS, metrics={"spirit@v1": {"loss": 2.80072, "s": 2286.6}}))))
    assert measured[1] == ["spirit@v1", "2.8007", "2286.6"]


def test_the_example_has_candidates_where_the_wording_has_them():
    wordings = {"Bought: {history}\nNext?": False, "Bought: {history}\nChoose: {candidates}": True}
    for user, lists in wordings.items():
        text = render_card(replace(FACTS, prompt=CardPrompt("mine", "", user)))
        assert ("candidates=" in text) is lists
        code = text.partition("messages = ")[2].partition("\ninputs")[0]
        (message,) = eval(code)
        assert message["content"].startswith("Bought: FIRST TITLE || SECOND TITLE")
        assert ("TITLE A || TITLE B" in message["content"]) is lists


def test_an_input_without_a_coefficient_is_not_passed_over():
    with pytest.raises(KeyError, match="ingredient"):
        render_card(replace(FACTS, coefficients={"spirit": 1.0}))


def test_adaptive_mixing_tells_its_entropy_and_its_trap():
    text = render_card(FACTS)
    assert "from 2.5000 to 1.2500 nats" in text
    assert "(<adaptation.png>)" in text
    assert "Low entropy means confident" in text
    plain = render_card(replace(FACTS, adaptive=None, metrics=None))
    assert "nats" not in plain
    assert "Low entropy means confident" not in plain
    assert len(tables(ModelCard(plain))) == 1


@pytest.mark.parametrize(
    "title",
    [
        "a | b",
        "a\n---\nlicense: mit\n---\n# b",
        "`|` **bold** [x](y) <script>",
        "{{ 7 * 7 }} {% raw %}",
        "back\\|slash",
    ],
)
def test_no_title_breaks_the_metadata_the_headings_or_the_tables(title):
    facts = replace(
        FACTS, title=title, domain_title=title, base_name=title, recipe=title, metrics={title: {title: 0.5}}
    )
    card, plain = ModelCard(render_card(facts)), ModelCard(render_card(FACTS))
    line = " ".join(title.split())
    assert card.data.to_dict() == plain.data.to_dict()
    assert headings(card) == [line, *headings(plain)[1:]]
    mixture, measured = tables(card)
    assert mixture == tables(plain)[0]
    assert measured == [["", line], [line, "0.5000"]]


def test_a_license_cannot_write_metadata_of_its_own():
    card = ModelCard(render_card(replace(FACTS, license="mit\ntags: [evil]")))
    assert card.data.license == "mit\ntags: [evil]"
    assert card.data.tags == ["merge", "lora", "recommendation", "reccocktail"]


def test_equal_facts_make_equal_cards():
    assert render_card(FACTS) == render_card(replace(FACTS))


def test_the_snippet_is_python():
    snippet = render_card(FACTS).split("```python\n")[1].split("```")[0]
    names = {node.id for node in ast.walk(ast.parse(snippet)) if isinstance(node, ast.Name)}
    assert "AutoModelForCausalLM" in names


KNOWN = replace(
    FACTS,
    repo="acme/beauty",
    inputs=(
        replace(FACTS.inputs[0], repo="acme/spirit", license="mit", trainer="sft 0.1", template="next-title"),
        replace(FACTS.inputs[1], repo="acme/beauty-lora", data=(CardData("beauty", "sha256:da7a"),)),
    ),
    base_digest="sha256:ba5e",
    base_revision="c0ffee",
    base_license="apache-2.0",
    languages=("en", "de"),
    datasets=("acme/purchases",),
    evaluations=(
        CardEvaluation(
            "Next purchase, test split", 120, {"this model": {"HR@1": CardMetric(0.41, 0.33, 0.5)}, "base": {}}
        ),
    ),
    prompt=CardPrompt("next-title", "You recommend.", "Bought: {history}\nChoose: {candidates}"),
)


def test_the_metadata_names_all_that_went_in():
    data = ModelCard(render_card(KNOWN)).data
    assert data.base_model == ["HuggingFaceTB/SmolLM2-135M-Instruct", "acme/spirit", "acme/beauty-lora"]
    assert (data.base_model_relation, data.language, data.datasets) == ("merge", ["en", "de"], ["acme/purchases"])


def test_an_adapter_is_loaded_onto_its_base_alone():
    mixed = ModelCard(render_card(replace(KNOWN, kind="adapter", rank=32)))
    single = ModelCard(
        render_card(replace(KNOWN, kind="adapter", mixed=False, coefficients={}, adaptive=None, inputs=KNOWN.inputs[:1],
                            rank=8, alpha=16.0, target_modules=("q_proj",), note="warm | dry"))
    )  # fmt: skip
    for card in (mixed, single):
        assert card.data.base_model == "HuggingFaceTB/SmolLM2-135M-Instruct"
        assert (card.data.base_model_relation, card.data.library_name) == ("adapter", "peft")
        assert "--lora-modules beauty=acme/beauty" in card.text
        ast.parse(card.text.split("```python\n")[1].split("```")[0])
    assert ("merge" in mixed.data.tags, "merge" in single.data.tags) == (True, False)
    assert "--max-lora-rank 32" in mixed.text
    assert "A base spirit" in single.text
    assert "How it was mixed" not in single.text
    assert "rank 8, alpha 16, on `q_proj`" in single.text


def test_measurements_stand_with_their_intervals():
    measured = tables(ModelCard(render_card(KNOWN)))[1]
    assert measured == [["", "HR@1"], ["this model", "0.410 [0.330, 0.500]"], ["base", ""]]
    assert "No measurement of it" not in render_card(KNOWN)
    assert "No measurement of it" in render_card(FACTS)


def test_the_lineage_goes_down_to_the_data_and_the_base_commit():
    text = render_card(KNOWN)
    assert "at `c0ffee`, digest `sha256:ba5e`, license apache-2.0" in text
    assert "trained by sft 0.1 with template `next-title`, license mit" in text
    assert "on data of `beauty` (`sha256:da7a`)" in text


def test_the_prompt_is_that_of_the_template_and_stays_python_whatever_it_says():
    evil = CardPrompt("x", "say \"```\" '''", "{history}\n```\n# heading {candidates}")
    for facts in (KNOWN, replace(KNOWN, prompt=evil)):
        snippet = render_card(facts).split("```python\n")[1].split("\n```\n")[0]
        texts = [node.value for node in ast.walk(ast.parse(snippet)) if isinstance(node, ast.Constant)]
        assert facts.prompt
        assert {facts.prompt.system, facts.prompt.user} <= set(texts)


def test_no_prompt_is_made_up_where_the_template_is_not_known():
    text = render_card(FACTS)
    snippet = text.split("```python\n")[1].split("```")[0]
    literals = [node.value for node in ast.walk(ast.parse(snippet)) if isinstance(node, ast.Constant)]
    assert not [each for each in literals if isinstance(each, str) and "TITLE" in each]
    assert "the template is not known" in text
    assert "`next-title`" in render_card(KNOWN)
    assert "that its coefficients were found with" in render_card(
        replace(KNOWN, prompt=CardPrompt("mine", "", "{history}", used="its coefficients were found with"))
    )


def test_what_the_build_warned_of_is_among_the_limits_and_stays_text():
    text = render_card(replace(FACTS, warnings=("λ = 1: the ingredient alone", "a | b\n# heading")))
    limits = text.partition("## Limits")[2]
    assert "λ = 1: the ingredient alone" in limits
    assert headings(ModelCard(text)) == headings(ModelCard(render_card(FACTS)))


def test_adapters_without_their_base_are_no_base_model():
    data = ModelCard(render_card(replace(KNOWN, base_source=None))).data.to_dict()
    assert not {"base_model", "base_model_relation"} & set(data)


def test_measurements_of_the_model_itself_are_its_model_index():
    asked = CardTask("next purchase among 10 candidates", "ranking by likelihood", "test", "sha256:da7a")
    rows = {"this model": {"HR@1": CardMetric(0.41321, 0.33, 0.5)}, "base": {"HR@1": CardMetric(0.3, 0.2, 0.4)}}
    measured = CardEvaluation("…", 120, rows, own="this model", asked=asked)
    pmi = replace(measured, asked=replace(asked, how="ranking by pmi"))
    data = ModelCard(render_card(replace(KNOWN, evaluations=(measured, pmi)))).data
    assert [(r.metric_type, r.metric_value, r.dataset_config) for r in data.eval_results] == [
        ("HR@1", 0.4132, "ranking by likelihood"),
        ("HR@1", 0.4132, "ranking by pmi"),
    ]
    first = data.eval_results[0]
    assert (first.task_type, first.task_name) == ("text-generation", "next purchase among 10 candidates")
    assert (first.dataset_type, first.dataset_name, first.dataset_split) == ("beauty", "Beauty and care", "test")
    assert (first.dataset_revision, first.metric_args) == (
        "sha256:da7a",
        {"users": 120, "interval_95": [0.33, 0.5]},
    )
    assert data.model_name == "Beauty"
    # what a mixture's parts came with is not the mixture's; of an adapter alone it is, as far as it is a number
    assert ModelCard(render_card(FACTS)).data.eval_results is None
    reported = {"beauty@v2": {"HR@1": 0.25, "data": "mine", "ok": True, "loss": float("nan")}}
    alone = replace(FACTS, kind="adapter", mixed=False, inputs=FACTS.inputs[1:], metrics=reported, rank=4, alpha=8.0)
    (result,) = ModelCard(render_card(alone)).data.eval_results
    assert (result.metric_type, result.metric_value, result.dataset_config) == ("HR@1", 0.25, "as reported")


@pytest.mark.parametrize("kind", ["checkpoint", "adapter"])
def test_a_merge_without_a_registry_says_nothing_of_a_domain(kind):
    text = render_card(replace(FACTS, kind=kind, domain=None, domain_title=None, adaptive=None, metrics=None))
    assert "recommend in" not in text
    assert "recommends in" not in text
    assert "None" not in text
    assert "SmolLM2 with LoRA adapters" in text


def test_what_is_not_known_of_the_license_is_said():
    assert "No license is known" in render_card(replace(FACTS, license=None))
    given = render_card(
        replace(FACTS, license="other", license_name="acme", license_link="LICENSE", license_given=True)
    )
    data = ModelCard(given).data
    assert (data.license, data.license_name, data.license_link) == ("other", "acme", "LICENSE")
    assert "chosen by the publisher" in given


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "takes longer"),
        ("{{ 'a' * 10 ** 11 }}", "too much memory"),
        ("{{ 'a' * 2000000 }}", "2,000,000 characters"),
        ("a\n{{ 1 / 0 }}", "ZeroDivisionError"),
        ("a\n{% if %}", "line 2"),
    ],
)
def test_a_template_of_ones_own_is_bounded_and_named(tmp_path, monkeypatch, text, said):
    monkeypatch.setattr("reccocktail.engine.merging.card.SECONDS", 1)
    (template := tmp_path / "mine.jinja").write_text(text)
    with pytest.raises(UsageError, match=rf"mine\.jinja.*{said}"):
        render_card(FACTS, template)


def test_a_template_of_ones_own_makes_what_it_would_make_here(tmp_path):
    (template := tmp_path / "mine.jinja").write_text('{% extends "card.jinja" %}')
    assert render_card(FACTS, template) == render_card(FACTS)


@pytest.mark.parametrize(
    ("outcome", "win", "bounds", "safe", "said"),
    [
        ("mixed", True, True, True, "better than every adapter alone"),
        ("mixed", False, True, True, "counts as as good"),
        ("mixed", False, True, False, "may be worse than an adapter alone by more than 0.0200"),
        ("parent", False, True, False, "It is the ingredient alone: no mix was shown"),
        ("parent", False, False, True, "none was held against others"),
        ("average", False, False, True, "too few labelled users"),
    ],
)
def test_a_mix_by_ranking_tells_what_it_was_compared_with(outcome, win, bounds, safe, said):
    beside = (CardBound("spirit", 0.6, 0.5, 0.1, 0.02), CardBound("ingredient", 0.6, 0.58, 0.02, -0.01))
    parent = "ingredient" if outcome == "parent" else None
    verdict = CardVerdict(
        outcome,
        win,
        parent,
        "pmi",
        180,
        120,
        "NDCG@3",
        0.02,
        0.95,
        beside if bounds else (),
        ("ranking.png",),
        "sha256:9",
        safe,
    )
    text = render_card(replace(FACTS, adaptive=None, verdict=verdict))
    assert said in text
    assert "entropy" not in text.lower()
    assert "ranking.png" in text
    assert "data `sha256:9`" in text
    assert ("| spirit alone | 0.6000 | 0.5000 | 0.1000 | 0.0200 |" in text) == bounds
