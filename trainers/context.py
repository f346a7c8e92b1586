"""What is kept with a trained adapter: by which package, with which options, on which data, from which commit, on what machine."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from ..registry import Base
from ..registry.redaction import redacted
from ..tasks import DomainData, TaskError, load_click_template, load_history_template, load_template
from .plugin import Trainer, package_of

CONFIDENTIAL = re.compile(r"(?i)(^|_)(password|passwd|secret|token|credentials?|(api|access|private|secret)_?key)$")
GIT_SECONDS = 10


def known_context(
    trainer: Trainer, role: str, options: BaseModel, data: Sequence[DomainData], base: Base, device: str
) -> dict[str, Any]:
    """What is known before training starts; the trainer adds what only it knows, such as its tasks' digests."""
    package = package_of(trainer)
    context: dict[str, Any] = {
        "trainer": trainer.name,
        "role": role,
        "options": options.model_dump(mode="json"),
        "data": [{"domain": domain.name, "digest": domain.digest} for domain in data],
        "base_digest": base.digest,
        "device": device,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
    }
    if package is not None:
        context |= {"trainer_package": package[0], "trainer_version": package[1]}
    if template := template_of(options):
        context["template"] = template
    if commit := git_commit(Path.cwd()):
        context["git"] = commit
    return context


def template_of(options: BaseModel) -> dict[str, str] | None:
    """Name and digest of the prompt template, for trainers that have an option `template` and mean ours by it."""
    name = getattr(options, "template", None)
    if not isinstance(name, str):
        return None
    for load in (load_template, load_click_template, load_history_template):
        with suppress(TaskError):  # the trainer reports it, if it is wrong
            template = load(name)
            return {"name": template.name, "digest": template.digest}
    return None


def git_commit(folder: Path) -> dict[str, Any] | None:
    """Commit of the repository that the folder is in, and whether tracked files differ from it; None outside of one.

    Nothing of the repository's is run: neither hooks nor a file monitor.
    """
    command = ["git", "-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null", "-C", str(folder)]
    environment = os.environ | {"GIT_OPTIONAL_LOCKS": "0"}

    def ask(*words: str) -> str:
        done = subprocess.run(
            [*command, *words], env=environment, capture_output=True, text=True, check=True, timeout=GIT_SECONDS
        )
        return done.stdout.strip()

    try:
        commit = ask("rev-parse", "--verify", "HEAD")
        return {"commit": commit, "dirty": bool(ask("status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.SubprocessError):
        return None


def discreet(value: Any, name: str = "") -> Any:
    """The value without secrets, and with `~` for the user's home folder."""
    if isinstance(value, Mapping):
        return {str(key): discreet(each, str(key)) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [discreet(each, name) for each in value]
    if not isinstance(value, str):
        return value
    if CONFIDENTIAL.search(name):
        return "***"
    home = str(Path.home())
    if len(home) > 1:
        value = re.sub(rf"(?<![\w/.-]){re.escape(home)}(?=/|$|[^\w.-])", "~", value)
    return redacted(value)
