"""`webhook`: targets that are told of events, and delivering to them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..registry.errors import UsageError, WebhookError
from .app import App, example, json_option, pass_app
from .console import answer, details, say, table

if TYPE_CHECKING:
    from ..registry.webhooks.hooks import Webhook, WebhookFields

KINDS = "adapter.added, alias.moved, build.succeeded, build.failed, domain.stale, publication.made"
Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


@click.group(epilog=example("reccocktail webhook list"))
def webhook() -> None:
    """Webhooks: tell other programs of events."""


def _field_options(function: Callable[..., Any]) -> Callable[..., Any]:
    options: Iterable[Decorator] = (
        click.option("--kind", "kinds", multiple=True, metavar="KIND", help=f"Events to send: {KINDS}."),
        click.option(
            "--domain", "domains", multiple=True, metavar="D", help="Only of this domain; spirit: the base spirit."
        ),
        click.option(
            "--secret-env",
            metavar="VARIABLE",
            help="Name of the environment variable with the secret.",
        ),
        click.option(
            "--secret-file",
            metavar="FILE",
            type=click.Path(path_type=Path),
            help="File with the secret, instead of a variable.",
        ),
    )
    for option in reversed([*options]):
        function = option(function)
    return function


@webhook.command(
    epilog=example(
        "reccocktail webhook add ops https://ops.example/hook --secret-env OPS_SECRET",
        "reccocktail webhook add lab http://10.0.0.5/ --secret-file lab.key --allow-private",
    )
)
@click.argument("name")
@click.argument("url")
@_field_options
@click.option("--allow-private", is_flag=True, help="Allow http and addresses of your own network.")
@json_option
@pass_app
def add(
    app: App,
    name: str,
    url: str,
    secret_env: str | None,
    secret_file: Path | None,
    allow_private: bool,
    as_json: bool,
    **chosen: tuple[str, ...],
) -> None:
    """Send events to a URL from now on.

    Without --kind, events of all kinds; without --domain, of all domains. Requests are signed with the secret (HMAC-SHA256); the registry only has the
    name of its variable or file. `webhook deliver` sends.
    """
    from ..registry.webhooks.signing import reference

    secret = reference(secret_env, secret_file)
    with app.backend() as backend:
        found = backend.webhooks.add(
            name, replace(_fields(**chosen), url=url, secret=secret, allow_private=allow_private)
        )

    def show() -> None:
        say(f"webhook {name} is added; `reccocktail webhook test {name}` sends it a test event")
        _warn_of_secret(app, found)

    answer(as_json, found.to_json(), show)


def _fields(kinds: tuple[str, ...], domains: tuple[str, ...]) -> WebhookFields:
    """What was chosen; nothing leaves it as it is."""
    from ..registry.webhooks.hooks import WebhookFields

    return WebhookFields(kinds=kinds or None, domains=domains or None)


def _warn_of_secret(app: App, found: Webhook) -> None:
    """A remark where the secret cannot be read here; it may be elsewhere. Of a server, whose environment is not to be seen, where it is needed."""
    from ..registry.webhooks.signing import named, read_secret

    if app.url is not None:
        say(
            f"note: {named(found.secret)} with its secret is needed where the server and `reccocktail webhook deliver` run"
        )
        return
    try:
        read_secret(found.secret)
    except WebhookError as error:
        say(f"note: {error}; it is needed where `reccocktail webhook deliver` runs")


@webhook.command(
    epilog=example(
        "reccocktail webhook edit ops --kind build.failed --kind domain.stale",
        "reccocktail webhook edit ops --all-domains --secret-env NEW_SECRET",
    )
)
@click.argument("name")
@click.option("--url", metavar="URL", help="The new target.")
@_field_options
@click.option("--all-kinds", is_flag=True, help="Send events of all kinds.")
@click.option("--all-domains", is_flag=True, help="Send events of all domains.")
@click.option(
    "--allow-private/--public-only", default=None, help="Allow http and addresses of your own network, or not."
)
@json_option
@pass_app
def edit(
    app: App,
    name: str,
    url: str | None,
    secret_env: str | None,
    secret_file: Path | None,
    all_kinds: bool,
    all_domains: bool,
    allow_private: bool | None,
    as_json: bool,
    **chosen: tuple[str, ...],
) -> None:
    """Change the given fields of a webhook.

    --kind and --domain replace what was chosen before. What is still to be sent goes to the new target.
    """
    from ..registry.webhooks.signing import reference

    for option, is_all in (("kind", all_kinds), ("domain", all_domains)):
        if is_all and chosen[f"{option}s"]:
            raise UsageError(f"give either --{option} or --all-{option}s")
    fields = replace(_fields(**chosen), url=url, allow_private=allow_private)
    fields = replace(fields, kinds=() if all_kinds else fields.kinds, domains=() if all_domains else fields.domains)
    if secret_env is not None or secret_file is not None:
        fields = replace(fields, secret=reference(secret_env, secret_file))
    if all(value is None for value in vars(fields).values()):
        raise UsageError("nothing was given to change", hint=f"`reccocktail webhook edit {name} --help`")
    _change(app, name, fields, as_json, f"webhook {name} is changed")


def _change(app: App, name: str, fields: WebhookFields, as_json: bool, message: str) -> None:
    with app.backend() as backend:
        found = backend.webhooks.edit(name, fields)
    answer(as_json, found.to_json(), lambda: say(message))


@webhook.command(epilog=example("reccocktail webhook disable ops"))
@click.argument("name")
@json_option
@pass_app
def disable(app: App, name: str, as_json: bool) -> None:
    """Stop a webhook.

    What is still to be sent waits until `webhook enable`. Events that happen until then are not kept for it.
    """
    from ..registry.webhooks.hooks import WebhookFields

    _change(app, name, WebhookFields(active=False), as_json, f"webhook {name} is disabled")


@webhook.command(epilog=example("reccocktail webhook enable ops"))
@click.argument("name")
@json_option
@pass_app
def enable(app: App, name: str, as_json: bool) -> None:
    """Start a disabled webhook again."""
    from ..registry.webhooks.hooks import WebhookFields

    _change(app, name, WebhookFields(active=True), as_json, f"webhook {name} is enabled")


@webhook.command(epilog=example("reccocktail webhook remove ops"))
@click.argument("name")
@json_option
@pass_app
def remove(app: App, name: str, as_json: bool) -> None:
    """Delete a webhook and its delivery log."""
    with app.backend() as backend:
        found = backend.webhooks.remove(name)
    lost = f"; events that were still to be sent: {found.pending}" if found.pending else ""
    answer(as_json, found.to_json(), lambda: say(f"webhook {name} is removed{lost}"))


@webhook.command(name="list", epilog=example("reccocktail webhook list", "reccocktail webhook list --json"))
@json_option
@pass_app
def list_(app: App, as_json: bool) -> None:
    """List webhooks: what each is told of, and what waits."""
    with app.backend() as backend:
        found = backend.webhooks.list()

    def show() -> None:
        rows = [
            [each.name, each.url, _kinds(each), each.domains or "all", _state(each), each.pending, each.dead]
            for each in found
        ]
        columns = ["name", "url", "kinds", "domains", "state", "pending", "dead"]
        table(
            columns,
            rows,
            empty="there is no webhook; `reccocktail webhook add NAME URL --secret-env VARIABLE`",
            right=("pending", "dead"),
            cut=("url",),
        )

    answer(as_json, [each.to_json() for each in found], show)


def _kinds(found: Webhook) -> Any:
    return "all" if found.kinds == tuple(KINDS.split(", ")) else found.kinds


def _state(found: Webhook) -> str:
    return "active" if found.active else "disabled"


@webhook.command(epilog=example("reccocktail webhook show ops"))
@click.argument("name")
@json_option
@pass_app
def show(app: App, name: str, as_json: bool) -> None:
    """Show a webhook."""
    with app.backend() as backend:
        found = backend.webhooks.get(name)
    shown = found.to_json() | {"domains": found.domains or "all"}
    answer(as_json, found.to_json(), lambda: details(shown))


@webhook.command(epilog=example("reccocktail webhook test ops"))
@click.argument("name")
@json_option
@pass_app
def test(app: App, name: str, as_json: bool) -> None:
    """Send a test event now, to see whether the target takes it.

    It is of the kind `test` and in no log. Exit code 1 if the target does not answer with success.
    """
    with app.backend() as backend:
        found = backend.test_webhook(name)
    answer(as_json, found, lambda: say(f"{name} answered {found['status_code']} in {found['seconds']:.2g} s"))
