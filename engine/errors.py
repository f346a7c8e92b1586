"""What mixing can refuse, beyond what the registry already refuses about a single adapter."""

from __future__ import annotations

from ..registry.errors import RecCocktailError


class RecipeError(RecCocktailError):
    """A recipe is malformed, unknown, or asks for something that its inputs cannot give."""

    code = "recipe"


class MergeError(RecCocktailError):
    """A merge cannot be carried out, or its result is not what it must be."""

    code = "merge"


class NoSpaceError(MergeError):
    """The disk is too small for what is to be written. Another machine's may do, or this one's later."""

    heals = True


class AdaptationError(RecCocktailError):
    """Coefficients could not be found from the domain's prompts."""

    code = "adaptation"


class EvaluationError(RecCocktailError):
    """Something named for evaluation cannot be loaded or ranked with."""

    code = "evaluation"
