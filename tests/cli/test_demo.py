"""The demo, with a tiny model and few shoppers, on a terminal: it resumes after Ctrl-C, gets to its last table, and a second time costs nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.mark.slow
def test_the_demo_resumes_after_ctrl_c_runs_to_its_last_table_and_a_second_time_at_no_cost(
    bare: Any, tiny_base: Path, on_terminal: type, on_warm_terminal: Callable[..., Any]
) -> None:
    words = ("demo", "--quick", "--base-source", tiny_base, "--folder", bare.folder / "demo")
    how = {"environment": bare.environment() | {"OMP_NUM_THREADS": "1"}, "folder": bare.folder}
    interrupted = on_warm_terminal(*words, **how, lines=60)
    interrupted.wait_for("training spirit")
    interrupted.press_ctrl_c()
    assert interrupted.ends(120) == 130
    assert interrupted.screen[-2:] == [
        "error: interrupted; what was finished is kept",
        "hint: run the same command again",
    ]
    warm = {"environment": how["environment"] | {"WARM_CHILDREN": "1"}, "folder": bare.folder}
    shown = on_warm_terminal(*words, **warm, lines=60)
    assert shown.ends(900) == 0, "\n".join(shown.screen)
    assert "training spirit" in shown.written
    assert "Loading weights" not in shown.written  # the bar of a library would run into ours
    for label in ("base model", "spirit alone", "ingredient alone", "average", "cocktail"):
        (row,) = [line for line in shown.screen if line.split("  ")[0].strip() == label]
        assert row.count("]") == 2, "both intervals are in one line of 80 columns"
    (head,) = [place for place, line in enumerate(shown.screen) if "bought next" in line and line.split()[0] == "after"]
    assert "(" in "".join(shown.screen[head + 2 : head + 4]), "with the place of what was bought"
    assert [line for line in shown.screen if line.startswith("done in ")]
    assert not [line for line in shown.screen if "━━━" in line or "Traceback" in line]
    again = on_terminal(*words, **how, lines=60)
    assert again.ends(900) == 0
    assert "training spirit ━" not in again.written
    assert [line for line in again.screen if line.startswith("cocktail")] == [
        line for line in shown.screen if line.startswith("cocktail")
    ]
    home = bare.folder / "demo"
    (state,) = [each for each in bare("--home", home, "status", "--json").json if each["domain"] == "skin-care"]
    assert state["state"] == "fresh", "what the demo suggests to type next is about the domain's own build"
    assert "recipe cocktail@v1" in shown.written
    assert "all zero" not in shown.written, "both adapters were trained"
    measured = bare("--home", home, "evaluation", "list", "--domain", "skin-care", "--json").json
    labels = {each["label"].split()[0] for each in measured}  # both builds are the average here, and so one system
    assert labels == {"smollm2", "spirit@v1", "skin-care@v1", "build"}
    assert bare("--home", home, "resolve", "skin-care", "--merged", "--json").json["build"] == state["build"]
