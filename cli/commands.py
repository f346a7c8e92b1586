"""All commands, in groups, in the order in which a newcomer meets them."""

from __future__ import annotations

from .adapters import adapter
from .bases import base
from .builds import build, status
from .demo import demo
from .domains import domain
from .evaluation import evaluate
from .merging import merge
from .publishing import publication, publish, unpublish, verify
from .recipes import recipe
from .recommending import recommend
from .serving import resolve
from .setup import db, doctor, init, store
from .training import train, trainers
from .workers import worker

GROUPS = {
    "Set up": (init, doctor, demo),
    "Data and training": (domain, base, train, trainers, adapter, evaluate),
    "Mixing": (recipe, build, merge, status),
    "Publishing and serving": (publish, unpublish, publication, verify, resolve, recommend),
    "Operations": (worker, store, db),
}
"""The headings of `reccocktail --help`, and the commands under each."""

ALL = tuple(command for commands in GROUPS.values() for command in commands)
