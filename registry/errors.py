"""The errors a caller may see. Each has a stable `code`, a message that says what and where, and mostly a hint."""

from __future__ import annotations


class RecCocktailError(Exception):
    """Anything RecCocktail refuses or cannot do; the message names the value and the place, the hint the next step."""

    code = "error"
    retryable = False  # whether the same may succeed later, or on another machine, with nothing changed

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class UsageError(RecCocktailError):
    """The request itself is malformed: an unknown name in an option, a bad reference, an impossible combination."""

    code = "usage"


class LocalOnlyError(UsageError):
    """What is asked for needs the files of this machine's registry, and a server was named."""

    code = "local_only"

    @classmethod
    def of(cls, what: str, *, hint: str | None = None) -> LocalOnlyError:
        return cls(
            f"{what} runs on this machine's files only, and RECCOCKTAIL_URL names a server",
            hint=hint or "run it where the registry is, without RECCOCKTAIL_URL",
        )


class InvalidReferenceError(UsageError):
    """The text is not `NAME`, `NAME@vN` or `NAME@ALIAS`."""

    code = "invalid_reference"


class NotFoundError(RecCocktailError):
    """The registry holds nothing under that name, version, alias or id."""

    code = "not_found"


class WrongKindError(NotFoundError):
    """The name means an adapter of another kind than is asked for: a personalised LoRA is never mixed, nor served whole."""

    code = "wrong_kind"


class ConflictError(RecCocktailError):
    """The name is taken by something else, or the state does not allow the change."""

    code = "conflict"


class UserDataError(ConflictError):
    """What is to be published holds the ids of users and what was learned of each."""

    code = "user_data"


class GateError(ConflictError):
    """The gate of a domain is closed: an evaluation or an approval is missing, or the figures are not good enough."""

    code = "gate"


class PreconditionError(ConflictError):
    """What the caller has seen is not so any more: somebody else was first."""

    code = "precondition"


class InvalidArtifactError(RecCocktailError):
    """A folder or file is not what it has to be: broken, incomplete, or not finite."""

    code = "invalid_artifact"


class UnsupportedAdapterError(InvalidArtifactError):
    """The adapter is sound but uses something that merging cannot honour."""

    code = "unsupported_adapter"


class BaseMismatchError(InvalidArtifactError):
    """The adapter was made for another base model."""

    code = "base_mismatch"


class UnreachableError(RecCocktailError):
    """The server that RECCOCKTAIL_URL names does not answer: it is not there, or something lies between."""

    code = "unreachable"
    retryable = True


class WebhookTargetError(UsageError):
    """A URL that events are not sent to: it is malformed, not encrypted, or leads to an address that is not public."""

    code = "webhook_target"


class WebhookError(RecCocktailError):
    """A webhook cannot be signed, as its secret is missing, or its target did not take what was sent."""

    code = "webhook"
    retryable = True


class DatabaseError(RecCocktailError):
    """The database cannot be used: unreachable, not migrated, or from a newer version."""

    code = "database"
    retryable = True


class UnavailableError(DatabaseError):
    """The database does not answer now: it restarts, is out of reach, or others keep it busy."""


class StoreError(RecCocktailError):
    """The artifact store cannot be read or written, or holds bytes that do not match their digest."""

    code = "store"
    retryable = True


class HubError(RecCocktailError):
    """The Hugging Face Hub refused or could not be reached."""

    code = "hub"
    retryable = True
