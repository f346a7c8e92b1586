"""The names that something is published under."""

from __future__ import annotations

import re

from ..registry.errors import UsageError
from ..registry.redaction import check_no_secret


def check_names(repo: str, tag: str | None = None) -> None:
    """Raises UsageError for what is not ORG/NAME, and for a tag that git would not take."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UsageError(str(error)) from error
    if "/" not in repo:
        raise UsageError(f"{repo!r} is not ORG/NAME", hint=f"name the organisation or user too: ORG/{repo}")
    check_no_secret("repository", repo)
    check_no_secret("tag", tag or "")
    if tag is not None and not re.fullmatch(r"\w[\w.+-]*", tag, re.ASCII):
        raise UsageError(f"{tag!r} is no tag", hint="use letters, digits, '.', '_', '-' and '+', such as v1.2")
