"""Where a registration comes from: the code's commit and the run that is under way, from git, MLflow and W&B where they say so."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ..errors import UsageError
from ..redaction import check_no_secret, redacted

GIT_SECONDS = 5.0
# https://mlflow.org/docs/latest/api_reference/python_api/mlflow.environment_variables.html, https://docs.wandb.ai/guides/track/environment-variables
_RUNS = {
    "mlflow_run_id": "MLFLOW_RUN_ID",
    "mlflow_tracking_uri": "MLFLOW_TRACKING_URI",
    "mlflow_experiment_name": "MLFLOW_EXPERIMENT_NAME",
    "wandb_run_id": "WANDB_RUN_ID",
    "wandb_project": "WANDB_PROJECT",
    "wandb_entity": "WANDB_ENTITY",
}
_NAMING = ("mlflow_run_id", "wandb_run_id")


def made_by(source: str | None, run: str | None) -> dict[str, Any]:
    """For a version's context, `source` and `run`: what was given, else what is found here. Raises UsageError for one with a secret in it."""
    given = {"source": source, "run": run}
    for what, text in given.items():
        check_no_secret(what, check_clear(what, text or ""))
    known = {
        "source": {"url": source} if source else found_source(Path.cwd()),
        "run": {"url": run} if run else found_run(),
    }
    return {name: value for name, value in known.items() if value}


def check_clear(what: str, text: str) -> str:
    """The text itself; UsageError for an address with a user's password in it."""
    if urlsplit(text).password:
        raise UsageError(f"the {what} has a password in it", hint="leave it out")
    return text


def found_source(folder: Path) -> dict[str, Any]:
    """Commit, remote without credentials, and whether files that git knows differ; empty where the folder is in no repository."""
    commit = _git(folder, "rev-parse", "--verify", "HEAD")
    if commit is None:
        return {}
    remote = _git(folder, "remote", "get-url", "origin")
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    found = {"git_commit": commit, "git_remote": remote and redacted(remote), "git_changed": bool(changed)}
    return {name: value for name, value in found.items() if value is not None}


def found_run(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """What MLflow's and W&B's variables say of the run; empty unless one names a run."""
    environ = os.environ if environ is None else environ
    found = {name: redacted(environ[variable]) for name, variable in _RUNS.items() if environ.get(variable)}
    return found if any(name in found for name in _NAMING) else {}


def _git(folder: Path, *words: str) -> str | None:
    """What git answers; None where it is not installed, takes too long or refuses."""
    quiet = {**os.environ, "GIT_TERMINAL_PROMPT": "0", "GIT_OPTIONAL_LOCKS": "0"}
    try:
        done = subprocess.run(
            ["git", "-c", "core.fsmonitor=false", "-C", str(folder), *words],
            capture_output=True, text=True, timeout=GIT_SECONDS, check=False, env=quiet, errors="replace",
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
