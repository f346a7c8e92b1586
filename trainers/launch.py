"""A launch of several processes, as by `accelerate launch` or `torchrun`: who is the first, and how the others hear from it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from typing import Any

from .plugin import TrainerError

WAIT_SECONDS = 30 * 60.0


@dataclass(frozen=True)
class Launch:
    """This process's place among `size`, by the variables that launchers set. The first keeps and registers the adapter."""

    rank: int
    size: int

    @classmethod
    def current(cls, environ: Mapping[str, str] | None = None) -> Launch | None:
        """None for a process that trains alone. Raises TrainerError for variables that contradict each other."""
        environ = os.environ if environ is None else environ
        try:
            size, rank = int(environ.get("WORLD_SIZE", "1")), int(environ.get("RANK", "0"))
        except ValueError:
            size = rank = -1
        if size == 1:
            return None
        if not 0 <= rank < size:
            raise TrainerError(
                f"WORLD_SIZE={environ.get('WORLD_SIZE')} and RANK={environ.get('RANK')} name no process",
                hint="`accelerate launch` sets both; unset WORLD_SIZE to train alone",
            )
        if missing := [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in environ]:
            raise TrainerError(f"WORLD_SIZE is {size}, but {', '.join(missing)} is not set", hint="`accelerate launch`")
        return cls(rank, size)

    def notify(self, state: str) -> None:
        """As the first process, send the others the next state."""
        self._store.set("state", state)

    def hear(self, wait_seconds: float | None = None) -> str:
        """The state that the first process sends, after waiting for it. Raises TrainerError if it sends nothing or is gone."""
        try:
            self._store.wait(["state"], timedelta(seconds=wait_seconds or WAIT_SECONDS))
            return self._store.get("state").decode()
        except RuntimeError as error:  # a timeout or a lost connection
            raise TrainerError(f"process {self.rank} got no message from the first one: {error}") from error

    @cached_property
    def _store(self) -> Any:
        """The key-value store at MASTER_ADDR that the launch has anyway; a restarted launch begins anew."""
        from torch.distributed import PrefixStore  # pyright: ignore[reportPrivateImportUsage]  documented there
        from torch.distributed.rendezvous import rendezvous

        store, _, _ = next(rendezvous("env://", self.rank, self.size))
        return PrefixStore(f"reccocktail/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
