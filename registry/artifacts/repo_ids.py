"""Names of repositories on the Hugging Face Hub."""

from __future__ import annotations


def is_repo_id(text: str | None) -> bool:
    """Whether the text can name a repository of the Hub, by the Hub client's own rules."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(text)
    except HFValidationError:
        return False
    return True
