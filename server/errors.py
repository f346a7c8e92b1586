"""What only a server refuses, and the HTTP status of every error, by its code."""

from __future__ import annotations

from ..registry.errors import RecCocktailError


class UnauthenticatedError(RecCocktailError):
    """Nobody says who asks, or what is said does not hold: no token, one that is unknown, expired or revoked."""

    code = "unauthenticated"


class ForbiddenError(RecCocktailError):
    """The caller is known and may not do this."""

    code = "forbidden"


class ProviderError(RecCocktailError):
    """The OpenID Connect provider does not answer, or not as it has to."""

    code = "provider"
    retryable = True


class TooManyRequestsError(RecCocktailError):
    """The caller asks more often than the server allows."""

    code = "too_many_requests"
    retryable = True


class TooLargeError(RecCocktailError):
    """What is sent is larger than the server takes."""

    code = "too_large"


STATUSES = {
    "usage": 400,
    "local_only": 400,
    "invalid_reference": 400,
    "webhook_target": 400,
    "unauthenticated": 401,
    "forbidden": 403,
    "not_found": 404,
    "wrong_kind": 404,
    "method_not_allowed": 405,
    "conflict": 409,
    "gate": 409,
    "user_data": 409,
    "precondition": 412,
    "too_large": 413,
    "invalid_artifact": 422,
    "unsupported_adapter": 422,
    "base_mismatch": 422,
    "recipe": 422,
    "merge": 422,
    "target_dependent": 422,
    "adaptation": 422,
    "guard": 422,
    "evaluation": 422,
    "trainer": 422,
    **dict.fromkeys(("task", "data", "chat_template", "no_ratings", "no_negatives", "one_class", "answer_token"), 422),
    **dict.fromkeys(("untitled_item", "empty_history", "gated_lora"), 422),
    "too_many_requests": 429,
    "error": 500,
    "internal": 500,
    "hub": 502,
    "webhook": 502,
    "provider": 502,
    "unreachable": 502,
    "database": 503,
    "store": 503,
    "no_room": 507,
}
"""By the code of an error. What can be mended by asking for something else is below 500."""
