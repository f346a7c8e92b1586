"""`token`: who may ask a server, and for what."""

from __future__ import annotations

import click

from .app import App, example, json_option, pass_app
from .console import answer, say, table


@click.group(epilog=example("reccocktail token list"))
def token() -> None:
    """Tokens: who may ask a server, and for what."""


@token.command(
    epilog=example(
        "reccocktail token create ci --scope read,register,build",
        "reccocktail token create anna --scope read,promote:beauty --expires 30d",
        "reccocktail token create operator --scope admin",
    )
)
@click.argument("name")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    required=True,
    metavar="SCOPE,...",
    help="read, register, build, promote:DOMAIN (promote:* for all), publish, admin (everything).",
)
@click.option("--expires", default="90d", show_default=True, metavar="SPAN", help="12h, 90d, 4w, 1y, or never.")
@json_option
@pass_app
def create(app: App, name: str, scopes: tuple[str, ...], expires: str, as_json: bool) -> None:
    """Make a token, and print it once.

    Its holder's rows and events carry NAME. The registry keeps a digest alone, so a token that is lost is replaced by a new one.
    """
    from ..registry.catalog.tokens import span

    wanted = [scope.strip() for given in scopes for scope in given.split(",")]
    with app.registry() as registry:
        made = registry.tokens.create(name, wanted, lasts=span(expires))

    def show() -> None:
        until = made.token.expires_at
        ends = "until it is revoked" if until is None else f"until {until:%Y-%m-%d %H:%M} UTC"
        say(f"token {name} holds {ends}; keep it now, for it is not shown again")
        click.echo(made.secret)

    answer(as_json, made.token.to_json() | {"token": made.secret}, show)


@token.command(name="list", epilog=example("reccocktail token list --json"))
@json_option
@pass_app
def list_(app: App, as_json: bool) -> None:
    """List tokens, revoked and expired ones included."""
    with app.registry() as registry:
        found = registry.tokens.list()

    def show() -> None:
        rows = [
            [
                each.name,
                ", ".join(each.scopes),
                "valid" if each.is_valid() else "revoked" if each.revoked_at else "expired",
                each.expires_at and f"{each.expires_at:%Y-%m-%d}",
                each.last_used_at and f"{each.last_used_at:%Y-%m-%d %H:%M}",
                each.created_by,
            ]
            for each in found
        ]
        columns = ["name", "scopes", "state", "expires", "last used (UTC)", "by"]
        table(
            columns, rows, empty="no token yet; `reccocktail token create NAME --scope read`", spare=("by", "expires")
        )

    answer(as_json, [each.to_json() for each in found], show)


@token.command(epilog=example("reccocktail token revoke ci"))
@click.argument("name")
@json_option
@pass_app
def revoke(app: App, name: str, as_json: bool) -> None:
    """Refuse a token, and its sessions, from now on."""
    with app.registry() as registry:
        row = registry.tokens.revoke(name)
    answer(as_json, row.to_json(), lambda: say(f"token {row.name} is revoked"))
