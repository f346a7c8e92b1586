"""Models whose head and embedding share one tensor: where adapters change them differently, the result holds two."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ...registry.artifacts.facts import BaseFacts
from ...registry.artifacts.lora import LoraModule, SavedTensor, TokenRows
from ...registry.artifacts.tensor_names import Place
from ..errors import MergeError
from .deltas import AdapterFile
from .plan import Part, Use

Uses = dict[str, list[Use]]


@dataclass(frozen=True)
class TiedEmbeddings:
    """A base whose head and embedding are one tensor, and the adapters of a mix, open for reading."""

    base: BaseFacts
    parts: Sequence[Part]
    files: Sequence[AdapterFile]

    def separate(self, uses: Uses) -> bool:
        """Bring `uses` into the form that the result has: whether it holds two tensors. Raises MergeError where it cannot."""
        head, embedding = self.base.head, self.base.embedding
        if embedding is None:
            return False
        alike = self._trained_as_one(uses.get(embedding, []), uses.get(head, []) if head else [])
        trained = [u for u in uses.get(embedding, []) if _breaks_tie(u) and u.part not in alike]
        of_head = [u for u in uses.get(head, []) if _breaks_tie(u) and u.part not in alike] if head else []
        if not trained and not of_head:
            if head:
                self._keep_one(uses, head, embedding, alike)
            return False
        head = self._head_of_its_own((trained or of_head)[0])
        own = {use.part for use in uses.setdefault(head, [])}
        uses[head] += [  # PEFT does not write a tied head's tokens down a second time
            replace(use, place=Place(head))
            for use in uses.get(embedding, [])
            if use.part not in own and (isinstance(use.what, TokenRows) or use.part in alike)
        ]
        return True

    def _keep_one(self, uses: Uses, head: str, embedding: str, alike: set[int]) -> None:
        if head in uses:
            uses[head] = [use for use in uses[head] if use.part not in alike]
            if not uses[head]:
                del uses[head]
        if head not in self.base.tensors:
            self._expect_copies(uses.pop(head, []), uses.get(embedding, []))
        elif embedding in uses and head not in uses:
            uses[head] = list(uses[embedding])  # tokens: a stored copy of the tied weight follows it

    def _head_of_its_own(self, use: Use) -> str:
        """The head's name. Raises MergeError where the model cannot have one beside its embedding."""
        base = self.base
        if base.head is not None and not base.encoder_decoder:
            return base.head
        why = (
            "an encoder-decoder model scales its target only when they are tied"
            if base.head
            else f"it is not known what the head of {base.architecture} would be called"
        )
        raise MergeError(
            f"{self.parts[use.part].folder}: {use.what.name} changes an embedding or a head that share one tensor, and {why}",
            hint="save the base with tie_word_embeddings=False and a head of its own",
        )

    def _trained_as_one(self, of_embedding: Sequence[Use], of_head: Sequence[Use]) -> set[int]:
        """The parts that were trained with `ensure_weight_tying`, and whose head is what their embedding is."""
        return {
            index
            for index, part in enumerate(self.parts)
            if part.facts.config.ensure_weight_tying
            and all(
                any(use.part == twin.part and self._same(use, twin) for twin in of_embedding)
                for use in of_head
                if use.part == index
            )
            and any(use.part == index for use in of_embedding)
        }

    def _expect_copies(self, of_head: Sequence[Use], of_embedding: Sequence[Use]) -> None:
        """PEFT saves a tied tensor under both its names. The two are one here, which they must agree on."""
        for use in of_head:
            twin = next((u for u in of_embedding if u.part == use.part and type(u.what) is type(use.what)), None)
            if twin is None or not self._same(use, twin):
                raise MergeError(
                    f"{self.parts[use.part].folder}: {use.what.name} shares its tensor with the embedding in the base,"
                    " but was saved with other values",
                    hint="train it as modules_to_save, which makes it a tensor of its own",
                )

    def _same(self, one: Use, other: Use) -> bool:
        file, what, twin = self.files[one.part], one.what, other.what
        if isinstance(what, LoraModule) and isinstance(twin, LoraModule):
            return _is_transpose(file, what, twin)
        if isinstance(what, LoraModule) or isinstance(twin, LoraModule):
            return False
        if isinstance(what, TokenRows) and isinstance(twin, TokenRows) and what.indices != twin.indices:
            return False
        return file.holds_the_same(what.info, twin.info)


def _is_transpose(file: AdapterFile, one: LoraModule, other: LoraModule) -> bool:
    """One of a head, the other of an embedding: PEFT ties A to the transpose of B, and B to that of A."""
    (a, b), (a_other, b_other) = file.factors(one), file.factors(other)
    return (
        one.embeds != other.embeds
        and one.scale == other.scale
        and a.shape == b_other.T.shape
        and bool((a == b_other.T).all())
        and b.shape == a_other.T.shape
        and bool((b == a_other.T).all())
    )


def _breaks_tie(use: Use) -> bool:
    """Trained tokens change head and embedding alike, and so do copies that PEFT saves of a resized vocabulary."""
    if isinstance(use.what, SavedTensor):
        return use.what.why != "embedding"
    return not isinstance(use.what, TokenRows)
