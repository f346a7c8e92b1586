"""How a build's coefficients were found, as `build show` and `build list` print it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from .console import printable

WIDTH = 30  # of a bar


def outcome_of(report: Mapping[str, Any] | None) -> str | None:
    """What came of the search: a mix, an average or one adapter; and how sure that is, where it is not just as good as every adapter alone."""
    report = report or {}
    outcome = report.get("outcome")
    if not outcome:
        return None
    found = report.get("adaptation") or {}
    if report.get("win"):
        return f"{outcome}, a win"
    if found.get("measured") is False:
        return f"{outcome}, not measured"
    unsure = outcome != "parent" and not (found.get("comparison") or {"safe": True})["safe"]
    return f"{outcome}, not sure" if unsure else outcome


def show_search(found: dict[str, Any]) -> None:
    if found.get("objective") == "ranking":
        _show_verdict(found)
    elif found.get("objective") == "agreement":
        _show_agreement(found)
    else:
        _show_adaptation(found)


def _show_verdict(found: dict[str, Any]) -> None:
    """What ships and why: every mix that was looked at, the rungs, and the comparison with each adapter alone."""
    click.echo("")
    click.echo(printable(f"outcome: {_outcome(found)}"))
    if found["search"] == "none":
        return
    left = f"; {found['seen']} left out, whose labels an adapter has seen" if found["seen"] else ""
    click.echo(f"labelled users: {found['fit']} to choose by, {found['gate']} to judge by{left}")
    if found["scores"]:
        losses = ", ".join(f"{each['score']} {each['loss']:.4f}" for each in found["scores"])
        click.echo(f"score: {found['score']}, the smallest loss of adapters and average ({losses})")
    else:
        click.echo(f"score: {found['score']}, as the recipe says")
    click.echo("loss of the right item, in nats:")
    _show_points(found)
    if found["comparison"]:
        _show_comparison(found["comparison"])


def _show_agreement(found: dict[str, Any]) -> None:
    """What was found without labels: every mix that was looked at, and how often the chosen one says what each adapter says."""
    what = {"mixed": "a mix", "average": "the average", "parent": f"the {found['parent']} alone"}[found["outcome"]]
    click.echo("")
    click.echo(printable(f"outcome: {what}, chosen without labels; nobody has measured it"))
    if found["search"] == "none":
        return
    click.echo(f"pseudo-users made of the catalogue: {found['pseudo_users']}; score: {found['score']}")
    click.echo(f"for {found['unanimous']:.0%} of them all adapters alone choose the same candidate; the mix chooses")
    for vote in found["votes"]:
        click.echo(printable(f"  as the {vote['role']} alone for {vote['agrees']:.0%}"))
    click.echo("loss of agreement with the adapters, in nats:")
    _show_points(found)


def _show_points(found: Mapping[str, Any]) -> None:
    most = max(point["loss"] for point in found["points"]) or 1.0
    for point in found["points"]:
        mix = "  ".join(f"{role} {value:4.2f}" for role, value in zip(found["roles"], point["means"], strict=True))
        mark = "  ← chosen" if point["means"] == found["chosen"] else ""
        bar = "█" * max(1, round(WIDTH * point["loss"] / most))
        click.echo(printable(f"  {mix}  {point['loss']:.4f}  {bar}{mark}"))
    for rung in found["rungs"]:
        taken = "taken" if rung["taken"] else "not taken"
        click.echo(f"  {rung['name']}: gain {rung['gain']:+.4f}, standard error {rung['error']:.4f}: {taken}")


def _outcome(found: Mapping[str, Any]) -> str:
    if found["outcome"] == "parent":
        return f"the {found['parent']} alone"
    what = "the average" if found["outcome"] == "average" else "a mix"
    if found["win"]:
        return f"{what}, better than every adapter alone"
    compared = found["comparison"]
    if compared is None:
        return f"{what}, not compared with anything"
    if not compared["safe"]:
        return f"{what}, although it may be worse than an adapter alone by more than {compared['margin']:g}"
    return f"{what}, not worse than any adapter alone by more than {compared['margin']:g}"


def _show_comparison(compared: Mapping[str, Any]) -> None:
    click.echo(
        f"{compared['metric']} of {compared['users']} users that took no part in the choice, with {1 - compared['alpha']:.3g} confidence:"
    )
    for bound in compared["bounds"]:
        click.echo(
            printable(
                f"  chosen {bound['mix_mean']:.3f}, {bound['parent']} alone {bound['parent_mean']:.3f}:"
                f" difference {bound['difference']:+.3f}, at least {bound['low']:+.3f}"
            )
        )
    if compared["looks"]:
        click.echo(f"  these users had judged {compared['looks']} other builds before, so the confidence is higher")


def _show_adaptation(found: dict[str, Any]) -> None:
    """The search as bars of entropy: every point of a line, or every step of the descent that was chosen."""
    if "runs" not in found:  # of a build that was made before there was more than a line
        roles, points = ("spirit", "ingredient"), found["curve"]
        seen = [([1 - p["ingredient"], p["ingredient"]], p["entropy"], None) for p in points]
    elif found["search"] == "none":
        return
    else:
        roles, run = found["roles"], found["runs"][found["chosen"]]
        seen = [(point["means"], point["entropy"], point["ndcg"]) for point in run["points"]]
        rates = [f"{each['learning_rate']:g}" for each in found["runs"] if each["learning_rate"] is not None]
        if rates:
            click.echo(
                f"\ndescent at learning rate {run['learning_rate']:g} of {', '.join(rates)};"
                f" λ per {found['granularity']} ({found['groups']}), {found['constraint']}; {run['stopped']}"
            )
    click.echo(
        f"\nentropy of the first {found['tokens']} answer tokens over {found.get('judged', found['prompts'])} prompts, in nats:"
    )
    most = max(entropy for _, entropy, _ in seen if entropy is not None) or 1.0
    for means, entropy, ndcg in seen:
        if entropy is None:
            continue
        bar = "█" * max(1, round(30 * entropy / most))
        judged = "" if ndcg is None else f"  NDCG@3 {ndcg:.3f}"
        mix = "  ".join(f"{role} {value:4.2f}" for role, value in zip(roles, means, strict=True))
        mark = "  ← chosen" if entropy == found["entropy"] else ""
        click.echo(printable(f"  {mix}  {entropy:.4f}  {bar}{judged}{mark}"))
    for end in found.get("ends", ()):
        judged = "" if end["ndcg"] is None else f", NDCG@3 {end['ndcg']:.3f}"
        entropy = "no number" if end["entropy"] is None else f"{end['entropy']:.4f}"
        click.echo(printable(f"  {end['role']} alone: {entropy}{judged}"))
