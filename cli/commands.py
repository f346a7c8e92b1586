"""All commands, in the order in which a newcomer meets them."""

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
from .serving import resolve
from .setup import db, doctor, init, store
from .training import train, trainers
from .workers import worker

ALL = (
    init,
    status,
    doctor,
    base,
    domain,
    adapter,
    train,
    evaluate,
    recipe,
    build,
    worker,
    publish,
    unpublish,
    publication,
    verify,
    resolve,
    merge,
    trainers,
    store,
    db,
    demo,
)
