"""What mixing can refuse, beyond what the registry already refuses about a single adapter."""

from __future__ import annotations

from ..registry.errors import RecCocktailError


class RecipeError(RecCocktailError):
    """A recipe is malformed, unknown, or asks for something that its inputs cannot give."""

    code = "recipe"


class MergeError(RecCocktailError):
    """A merge cannot be carried out, or its result is not what it must be."""

    code = "merge"


class InsufficientResourcesError(MergeError):
    """The disk or the memory is too small for what is to be done, which was found out before it began.

    It `retryable`, for another machine's may do or this one's later, unless this one never has so much even when it is idle.
    """

    code = "no_room"

    def __init__(self, message: str, *, hint: str | None = None, retryable: bool = True) -> None:
        super().__init__(message, hint=hint)
        self.retryable = retryable


class TargetDependentError(MergeError):
    """A personalised LoRA whose coefficients depend on the item asked about: there is no one LoRA of a user."""

    code = "target_dependent"


class AdaptationError(RecCocktailError):
    """Coefficients could not be found from the domain's prompts."""

    code = "adaptation"


class GuardError(AdaptationError):
    """A mix may be worse than an adapter alone, and the recipe says that such a build fails."""

    code = "guard"


class EvaluationError(RecCocktailError):
    """Something named for evaluation cannot be loaded or ranked with."""

    code = "evaluation"
