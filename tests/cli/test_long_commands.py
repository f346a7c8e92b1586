"""Each command that takes long, once on a terminal: it shows how far it is, and leaves a clean screen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


def _shown(shell: Any, on_terminal: Callable[..., Any], *words: object) -> Any:
    """The terminal after the command, which has succeeded and left nothing of a bar."""
    environment = shell.environment() | {"OMP_NUM_THREADS": "1"}
    shown = on_terminal(*words, environment=environment, folder=shell.folder)
    assert shown.ends(600) == 0, shown.written
    assert not [line for line in shown.screen if "━" in line or "left 0:" in line or "Traceback" in line], shown.written
    return shown


@pytest.mark.slow
def test_train_and_evaluate(prepared: Any, on_warm_terminal: Callable[..., Any]) -> None:
    trained = _shown(prepared, on_warm_terminal, "train", "skin-care", "-o", "epochs=1", "-o", "examples=8")
    assert "training ingredient" in trained.written
    assert trained.screen[-1] == "registered: skin-care@v2"
    words = ("evaluate", "tiny", "skin-care", "--domain", "skin-care", "--limit", "4")
    assert "ranking with tiny" in _shown(prepared, on_warm_terminal, *words).written


@pytest.mark.slow
def test_merge_verify_and_publish(
    built: Any, on_warm_terminal: Callable[..., Any], tiny_base: Path, loras: dict[str, Path], loopback_hub: Any
) -> None:
    words = ("merge", tiny_base, "-a", f"{loras['spirit']}=0.4", "-a", f"{loras['ingredient']}=0.6", "-o", "merged")
    merged = _shown(built, on_warm_terminal, *words)
    assert (built.folder / "merged" / "model.safetensors").exists()
    assert any(line.startswith("merged into") for line in merged.screen)
    assert "verifying" in _shown(built, on_warm_terminal, "store", "verify").written
    newest = built("build", "list", "--json").json[0]["id"]
    published = _shown(built, on_warm_terminal, "publish", newest, "--to", "acme/skin-care")
    assert any(line.startswith("published: acme/skin-care at commit") for line in published.screen)
    assert loopback_hub.files("acme/skin-care")
