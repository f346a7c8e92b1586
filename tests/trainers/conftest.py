"""A plugin that is installed, so that processes of their own find it, and that does whatever it is told to."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

MISBEHAVING = """
import ctypes, os, shutil, signal, subprocess, sys, threading, time
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field
from reccocktail.trainers.plugin import PluginDomain, TrainerError, TrainingResult


class Options(BaseModel, extra="forbid"):
    adapter: str = Field(description="a ready adapter")
    how: str = Field("well", description="what it does")


class Misbehaving:
    name, summary, Options = "misbehaving", "does what it is told", Options

    def train(self, job):
        how, out = job.options.how, job.folder / "adapter"
        job.progress(1, 4, {"loss": 2.5})
        (job.folder / "checkpoint").touch()
        match how:
            case "raise": raise ValueError("a bug")
            case "refuse": raise TrainerError("no luck today", hint="come again")
            case "memory": raise MemoryError("too much")
            case "exit": sys.exit(3)
            case "vanish": os._exit(0)
            case "vanish badly": os._exit(7)
            case "segfault": ctypes.string_at(0)
            case "killed": os.kill(os.getpid(), signal.SIGKILL)
            case "killed once":
                if not job.resume: os.kill(os.getpid(), signal.SIGKILL)
                assert (job.folder / "checkpoint").exists()
            case "hang": time.sleep(600)
            case "hang deaf":
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                time.sleep(600)
            case "hang with a child":
                child = subprocess.Popen(["sleep", "600"])
                (job.folder / "child").write_text(str(child.pid))
                time.sleep(600)
            case "dict": return {"adapter": str(out)}
            case "text": return TrainingResult(str(out), {})
            case "nothing": return TrainingResult(out, {})
            case "figures": job.progress(2, 4, {"loss": "low"})
            case "talk":
                print("python talks")
                os.write(1, b"the descriptor talks\\n")
                os.system("echo a child talks")
                ctypes.CDLL(None).puts(b"C talks")
            case "read": assert sys.stdin.read() == ""
            case "crash later":
                import atexit
                atexit.register(lambda: os.kill(os.getpid(), signal.SIGSEGV))
            case "slowly":
                for _ in range(600):
                    job.progress(2, 4, {})
                    time.sleep(0.1)
        shutil.copytree(job.options.adapter, out, dirs_exist_ok=True)
        metrics = {"train_loss": 0.5}
        match how:
            case "outside":
                shutil.copytree(out, job.folder.parent / "elsewhere", dirs_exist_ok=True)
                return TrainingResult(job.folder.parent / "elsewhere", metrics)
            case "bare": return TrainingResult(job.folder, metrics)
            case "invalid": (out / "adapter_model.safetensors").write_bytes(b"no weights")
            case "incomplete": (out / "adapter_config.json").unlink()
            case "nan": metrics = {"train_loss": float("nan")}
            case "word": metrics = {"train_loss": "low"}
            case "context": return TrainingResult(out, metrics, {"when": object()})
        job.progress(4, 4, {"loss": 0.5})
        return TrainingResult(out, metrics, {"resumed": job.resume, "options": {"made": "up"}, "home": str(Path.home() / "x")})
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """(name, source, class, version): a plugin of this name on the search path of this process and of its children."""
    folder = tmp_path / "site"
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]))
    monkeypatch.syspath_prepend(folder)

    def make(name: str, source: str, kind: str, version: str = "1.2.3") -> Path:
        about = folder / f"a_{name}-{version}.dist-info"
        about.mkdir(parents=True)
        (folder / f"a_{name}.py").write_text(source)
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: a-{name}\nVersion: {version}\n")
        (about / "entry_points.txt").write_text(f"[reccocktail.trainers]\n{name} = a_{name}:{kind}\n")
        return folder

    return make


@pytest.fixture
def misbehaving(install: Callable[..., Path]) -> Path:
    """Its module."""
    return install("misbehaving", MISBEHAVING, "Misbehaving") / "a_misbehaving.py"
