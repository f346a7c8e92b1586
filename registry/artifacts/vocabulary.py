"""The embedding and the head of a language model, found among the names and shapes of its tensors."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from .lora import is_head, is_vocabulary

# names under which heads are stored; where a tied one is not stored, its name comes from `find_head`
_HEADS = (
    "lm_head.weight", "embed_out.weight", "language_model.lm_head.weight", "cls.predictions.decoder.weight",
    "lm_head.decoder.weight", "vocab_projector.weight",
)  # fmt: skip
_WITH_HEAD = (
    "ForCausalLM", "LMHeadModel", "DoubleHeadsModel", "ForConditionalGeneration", "WithLMHeadModel", "Text2Text", "TextToText",
    "Seq2Seq",
)  # fmt: skip
_WITH_MASKED_HEAD = ("ForMaskedLM", "ForPreTraining")
# heads with a layer of their own before the logits, and a bias that is tied under another name
_MASKED_PARTS = ("cls.predictions.", "lm_head.dense.", "lm_head.layer_norm.", "generator_predictions.")
_HEAD_OF = {
    "gpt_neox": "embed_out.weight",
    "gpt_neox_japanese": "embed_out.weight",
    "biogpt": "output_projection.weight",
    "trocr": "output_projection.weight",
    "whisper": "proj_out.weight",
    "git": "output.weight",
    "modernbert-decoder": "decoder.weight",
    "rwkv": "head.weight",
    "xlm": "pred_layer.proj.weight",
    "flaubert": "pred_layer.proj.weight",
    "xlnet": "lm_loss.weight",
}
_TRUNKS = ("model", "transformer")  # modules that lie beside the head of a language model


def is_tied(config: Mapping[str, Any], tensors: Collection[str]) -> bool:
    # configs omit their class's default, so silence is decided by whether a head of its own was saved
    tied = config.get("tie_word_embeddings")
    return tied if isinstance(tied, bool) else not any(head in tensors for head in _HEADS)


def find_head(
    architecture: str, model_type: str, tensors: Collection[str], embedding: str | None
) -> tuple[str | None, bool]:
    """The name of the head's own tensor, and whether the model has a head for tokens, as far as can be known."""
    own = _HEAD_OF.get(model_type)
    beside = _beside_trunk(embedding) if embedding else "lm_head.weight"
    for name in dict.fromkeys((own, beside, *_HEADS)):
        if name in tensors:
            return name, True
    if own and architecture.endswith(_WITH_HEAD):
        return own, True
    stored = [name for name in tensors if is_head(name) and name.endswith(".weight")]
    if len(stored) == 1:
        return stored[0], True
    if architecture.endswith(_WITH_HEAD) and not any(name.startswith(_MASKED_PARTS) for name in tensors):
        return beside, True
    # BERT's and its kin's have a bias too that is tied, by another name
    return None, architecture.endswith((*_WITH_HEAD, *_WITH_MASKED_HEAD))


def _beside_trunk(embedding: str) -> str:
    """The head of the language model that the embedding is of: of `language_model.model.embed_tokens` it is `language_model.lm_head`."""
    modules = embedding.split(".")
    last = max((at for at, module in enumerate(modules) if module in _TRUNKS), default=0)
    return ".".join([*modules[:last], "lm_head.weight"])


def find_embedding(config: Mapping[str, Any], tensors: Mapping[str, tuple[int, ...]]) -> str | None:
    text = config.get("text_config")
    sizes = {part.get("vocab_size") for part in (config, text) if isinstance(part, dict)} - {None}
    matrices = {
        name: shape[0]
        for name, shape in tensors.items()
        if name.endswith(".weight") and len(shape) == 2 and not is_head(name)
    }
    found = [name for name in matrices if is_vocabulary(name)]
    # multimodal models embed more than text; T5 and its kin may store what they share more than once
    if len(found) > 1:
        found = [name for name in found if matrices[name] in sizes] or found
    if len(found) > 1:
        found = [name for name in found if name.rpartition(".")[0].endswith("shared")]
    elif not found:  # CTRL and others, by a name of their own
        found = [name for name, rows in matrices.items() if rows in sizes and name not in _HEAD_OF.values()]
    return found[0] if len(found) == 1 else None
