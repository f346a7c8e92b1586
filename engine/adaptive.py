"""Finding the coefficients from unlabelled prompts: the entropy of the mixture's own answers, as small as it gets.

RecCocktail Eq. 8 for one λ over the whole model and two adapters. That objective is a curve, so it is evaluated on a
grid and the minimum taken: no gradient, no learning rate, and the whole curve is there to be looked at.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ..tasks import Question, fit
from .errors import AdaptationError
from .mixture import Mixture, answer_entropies
from .models import load_model
from .recipes import Adaptive
from .results import Part


@dataclass(frozen=True)
class CurvePoint:
    """Mean entropy in nats of the answers when the ingredient weighs `ingredient` and the spirit the rest."""

    ingredient: float
    entropy: float


@dataclass(frozen=True)
class Adaptation:
    """The λ that was found, and the curve that it is the minimum of."""

    spirit: float
    ingredient: float
    entropy: float
    prompts: int
    tokens: int
    curve: tuple[CurvePoint, ...]

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a person should know before trusting the λ that was found."""
        alone = {0.0: "spirit", 1.0: "ingredient"}.get(self.ingredient)
        if alone is None:
            return ()
        return (f"entropy is smallest for the {alone} alone, so nothing is mixed; low entropy means sure, not right",)

    def to_json(self) -> dict:
        return asdict(self)


def adapt(
    base_folder: Path,
    spirit: Part,
    ingredient: Part,
    questions: Sequence[Question],
    adaptive: Adaptive,
    *,
    method: str,
    device: str,
    batch_tokens: int = 2048,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Adaptation:
    """Evaluate the entropy curve on the questions' prompts (labels are never looked at) and take its minimum.

    `progress` is told (prompts scored, prompts to score), each prompt once per point of the curve. Raises AdaptationError without prompts, or when
    an entropy is not finite.
    """
    if not questions:
        raise AdaptationError(
            "the domain has no validation prompts to adapt on", hint="give users at least 3 interactions"
        )
    model, tokenizer = load_model(base_folder, device)
    asked = fit(questions, tokenizer)
    prompts = [tokenizer.apply_chat_template(q.messages, add_generation_prompt=True)["input_ids"] for q in asked]
    batches = _batches(prompts, batch_tokens)
    curve: list[CurvePoint] = []
    done = 0
    with Mixture(model, [spirit, ingredient], method) as mixture:
        for step in range(adaptive.points):
            share = step / (adaptive.points - 1)
            mixture.set([1 - share, share])
            total = 0.0
            for batch in batches:
                pad = tokenizer.pad_token_id or tokenizer.eos_token_id or 0
                entropies = answer_entropies(model, batch, adaptive.tokens, pad, tokenizer.eos_token_id)
                total += float(entropies.sum())
                done += len(batch)
                progress(done, len(prompts) * adaptive.points)
            if not math.isfinite(total):
                raise AdaptationError(f"the entropy at ingredient λ = {share:g} is not a number: an adapter is broken")
            curve.append(CurvePoint(round(share, 6), total / len(prompts)))
    best = min(curve, key=lambda point: point.entropy)
    return Adaptation(
        spirit=round(1 - best.ingredient, 6),
        ingredient=best.ingredient,
        entropy=best.entropy,
        prompts=len(prompts),
        tokens=adaptive.tokens,
        curve=tuple(curve),
    )


def _batches(prompts: list[list[int]], batch_tokens: int) -> list[list[list[int]]]:
    """Prompts of like length together, so that little is padded; a batch holds at most `batch_tokens` with padding."""
    batches: list[list[list[int]]] = []
    for prompt in sorted(prompts, key=len):
        if batches and len(prompt) * (len(batches[-1]) + 1) <= batch_tokens:
            batches[-1].append(prompt)
        else:
            batches.append([prompt])
    return batches


def plot(adaptation: Adaptation, target: Path, *, title: str) -> None:
    """The entropy curve over λ as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 3.6), layout="constrained")
    axes.plot([p.ingredient for p in adaptation.curve], [p.entropy for p in adaptation.curve], marker="o")
    axes.axvline(adaptation.ingredient, linestyle="--", color="tab:red", label=f"chosen λ = {adaptation.ingredient:g}")
    axes.set_xlabel("ingredient λ (spirit 1 - λ)")
    axes.set_ylabel(f"mean entropy of the first {adaptation.tokens} tokens (nats)")
    axes.set_title(title)
    axes.legend()
    # No software version in the file: the same curve gives the same bytes.
    figure.savefig(target, dpi=120, metadata={"Software": None})
    pyplot.close(figure)
