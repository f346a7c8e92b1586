"""Whatever is typed: an answer or one of our own errors, never a traceback, an internal error or a wait without end."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ODD = {
    "the root": "/",
    "a pipe": "{pipe}",
    "a folder": "{folder}",
    "a NUL": "a\0b",
    "a line break": "a\nb",
    "bytes that are no UTF-8": "a\udcff",
    "a large number": "9" * 400,
    "a long name": "x" * 5000,
    "a reference": "a@b@c",
}
# {} is where the odd text goes; what would start real work when it is taken for good is left out
COMMANDS = """
status {}
base add {} {base}
base add new {}
base show {}
domain add {}
domain add new --data {}
domain add new --title {}
domain add new --trainer {}
domain add new --recipe {}
domain add {} --from-plugin sft
domain sync {}
domain show {}
adapter add {} --base tiny --spirit
adapter add {lora} --base {} --spirit
adapter add {lora} --base tiny --domain {}
adapter add {lora} --base tiny --domain kitchen --metric {}
adapter add {lora} --base tiny --domain kitchen --metric a={}
adapter add {lora} --base tiny --domain kitchen --tag {} --note {}
adapter list --domain {}
adapter list --tag {}
adapter list --search {}
adapter list --metric {}
adapter list --after {}
adapter list --limit {}
adapter show {}
adapter show spirit --at {}
adapter diff {} spirit
adapter alias spirit {}
adapter alias {} champion
adapter archive {}
adapter verify {}
adapter log {}
train {}
train kitchen -o {}
train kitchen --trainer {}
train --spirit --domains {}
evaluate {} --domain skin-care
evaluate popularity --domain {}
evaluate popularity --domain skin-care --template {}
evaluate popularity --domain skin-care --against {}
evaluate popularity --domain skin-care --limit {}
recipe show {}
recipe check {}
build request {}
build request skin-care --recipe {}
build request skin-care --base {}
build list --domain {}
build list --adapter {}
build list --after {}
build show {}
build logs {}
build cancel {}
build retry {}
build export {} {folder}/out
build export skin-care {}
publish {} --to acme/x --dry-run
publish skin-care --to {} --dry-run
publish skin-care --to acme/x --dry-run --card-template {}
unpublish {}
verify {}
resolve {}
resolve {} --merged
resolve spirit --format peft -o {}
merge {} -a {lora} -o {folder}/out
merge {base} -a {} -o {folder}/out
merge {base} -a {lora}={} -o {folder}/out
merge {base} -a {lora} -o {}
merge {base} -a {lora} -o {folder}/out -r {}
merge {base} -a {lora} -o {folder}/out --method {}
merge {base} -a {lora} -o {folder}/out --option {}
merge {base} -a {lora} -o {folder}/out --option seed={}
merge {base} -a {lora} -o {folder}/out --device {}
trainers show {}
--as {} domain list
--home {} status
--store-url {} status
--database-url {} status
--cache-limit {} status
--device {} status
""".strip().splitlines()


class _TooLongError(Exception):
    """A command waits for something that will not come."""


@pytest.fixture
def places(built: Any, tiny_base: Path, loras: dict[str, Path], tmp_path: Path) -> dict[str, str]:
    (folder := tmp_path / "folder").mkdir()
    (folder / "file").write_text("")
    os.mkfifo(tmp_path / "pipe.yaml")
    return {
        "base": str(tiny_base),
        "lora": str(loras["newer"]),
        "folder": str(folder),
        "pipe": str(tmp_path / "pipe.yaml"),
    }


@pytest.fixture
def alarmed() -> Iterator[None]:
    def too_long(*_: object) -> None:
        raise _TooLongError

    before = signal.signal(signal.SIGALRM, too_long)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def _words(command: str, odd: str, places: dict[str, str]) -> list[str]:
    for name, place in places.items():
        odd = odd.replace(f"{{{name}}}", place)
    words = command.split()
    for name, place in places.items():
        words = [word.replace(f"{{{name}}}", place) for word in words]
    return [word.replace("{}", odd) for word in words]


def _told(shell: Any, words: list[str]) -> str | None:
    """What is wrong with the answer, if anything is."""
    signal.alarm(60)
    try:
        answer = shell(*words, code=None)
    except _TooLongError:
        return "waits"
    except BaseException as error:  # noqa: BLE001  what no command may let through
        return f"{type(error).__name__}: {error}"[:300]
    finally:
        signal.alarm(0)
    if answer.code not in (0, 1, 2) or "a bug in RecCocktail" in answer.err or "Traceback" in answer.err:
        return f"{answer.code}: {answer.err[-400:]}"
    return None


@pytest.mark.slow
@pytest.mark.slow
@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
def test_no_command_fails_by_an_internal_error(built: Any, places: dict[str, str], alarmed: None, odd: str) -> None:
    wrong = {}
    for command in COMMANDS:
        words = _words(command, odd, places)
        if problem := _told(built, words):
            wrong[" ".join(map(ascii, words))[:200]] = problem
    assert not wrong
