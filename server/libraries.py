"""What the server loads only when somebody asks for it, for it takes seconds and 300 MiB: the libraries that run models and compare weights."""

from __future__ import annotations

import gc
from functools import cache
from importlib import import_module


@cache
def load_models() -> None:
    """Loads them, once in a process. To be called in a thread, never in that of the event loop."""
    for name in ("answering", "comparing"):
        import_module(f"..engine.{name}", __package__)
    gc.freeze()  # as when the server begins: no collection looks at what they brought again
