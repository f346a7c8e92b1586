"""All commands, in groups, in the order in which a newcomer meets them."""

from __future__ import annotations

from . import adapter_list, build_list, differences, editing, gates, webhook_deliveries
from .adapters import adapter
from .bases import base
from .builds import build
from .completion import completion
from .demo import demo
from .domains import domain
from .evaluation import evaluate
from .evaluation_records import evaluation
from .event_log import log
from .merging import merge
from .one_file import apply, export
from .personalising import personalise
from .publishing import publication, publish, unpublish, verify
from .recipes import recipe
from .recommending import recommend
from .served import rollback
from .server import server
from .serving import resolve
from .setup import db, doctor, init, store
from .status import status
from .templates import template
from .tokens import token
from .training import train, trainers
from .webhooks import webhook
from .workers import worker

GROUPS = {
    "Set up": (init, doctor, demo, completion),
    "Data and training": (domain, base, train, trainers, adapter, evaluate, evaluation),
    "Mixing": (recipe, template, build, merge, status),
    "Publishing and serving": (publish, unpublish, publication, verify, resolve, rollback, recommend, personalise),
    "Operations": (worker, webhook, server, token, log, apply, export, store, db),
}
"""The headings of `reccocktail --help`, and the commands under each."""

JOINED = (adapter_list, build_list, differences, editing, gates, webhook_deliveries)
"""Modules whose commands join the groups of others."""

ALL = tuple(command for commands in GROUPS.values() for command in commands)
