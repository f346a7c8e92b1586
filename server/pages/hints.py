"""Hints of errors as pages give them: by the fields and buttons that a page has, where the command names its options."""

from __future__ import annotations

import re

OFFERED = (
    # promotion, approval, the gate
    (r'reccocktail build policy [^\s;]+ --alias [^\s;]+ --override "why"|^--override "why"$', "give a reason for passing the gate by"),
    (r'--override "why" lets it through all the same, and the reason is recorded', "a reason for passing the gate by lets it through all the same, and is recorded"),
    (r"somebody else: reccocktail (?:adapter|build) approve [^\s;]+", "somebody else approves it on this page, logged in in their own name"),
    (r"in their own name \(--as\)", "logged in in their own name"),
    (r"give --require or --approvals; --remove removes the gate", "name a metric or a number of approvals"),
    (r"write metric=[^\s;]+", ""),
    # versions, builds
    (r"use --force to archive it", "it can be archived all the same"),
    (r"reccocktail rollback [^\s;]+ --to BUILD; `reccocktail build history (\S+)`", r"name a build or a moment; the page of \1 lists what it served"),
    (r"`reccocktail build history (\S+)`", r"the page of \1 lists what it served"),
    (r"(?:build it again: )?`?reccocktail build request ([^\s;`]+)[^;`]* --wait`?", r"request a build on the page of \1"),
    (r"reccocktail build promote (\S+)$", r"promote build \1 on its page"),
    (r"reccocktail build (?:retry|show) (\S+)$", r"see the page of build \1"),
    (r"`reccocktail (?:build|domain|adapter) list[^`]*`(?: and `reccocktail build list`)? shows? [\w ]+", "the overview leads to all domains, and those to their versions and builds"),
    (r"reccocktail adapter archive [^\s;]+ --base [^\s;]+ --undo", r"“Restore” on the page of its domain takes it into use again"),
    (r"`reccocktail recipe log [^\s;]+` lists", "the page of the recipe lists"),
    (r"`?reccocktail adapter list --domain ([^\s`]+)[^;`]*`?", r"the page of \1 lists its versions"),
    (r"run the same command with (.+?)(?=;|$)", r"try it with \1"),
    (r"POST /api/v1/recipes adds one", "the page of recipes adds one"),
    (r"say --base NAME(?:, or an id)?", "begin from the page of the version or build that you mean"),
    (r"run the same(?: command)? again", "do the same again"),
    # publishing
    (r"write a folder with a slash: \./merged", ""),
    (r"name its license: --license ID", "name its license under “License”"),
    (r"set one with --license ID", "set one under “License”"),
    (r"--license ID sets one", "“License” sets one"),
    (r"check the network, HF_ENDPOINT and HF_HUB_OFFLINE; --offline.*", "check the server's network, HF_ENDPOINT and HF_HUB_OFFLINE; files and card are shown below all the same"),
    (r"--sign KEY; to leave", "only the command signs; to leave"),
    (r"--replace removes its files first", "“Remove all files that are not part of this publication” removes its files first"),
    (r"or say --public", "or choose public"),
    (r"^--card-template FILE", "only the command takes a template for the card"),
    (r"--strip-users publishes it without", "“Leave ids and embeddings of users out” publishes it without"),
    (r"--rebase commits on top of them", "“Commit on top of commits by others” keeps them"),
    (r"(?:then )?run `hf auth login`", "whoever runs the server runs `hf auth login` there"),
    # recommending
    (r"--user U, of the domain's data", "name a user of the domain's data"),
    (r'--user U, or --history "TITLE .*? TITLE"', "type a history, or name a user"),
    (r'--history "TITLE .*? TITLE", the newest at the end', "a title a line, the newest last"),
    (r"leave out .*--build(?: or --adapter)?", "choose another under “Who recommends”"),
    (r"--retrieve N or --candidates FILE.*", "only the command takes other candidates or another template"),
)  # fmt: skip
"""What a hint says for the command, and what for a page."""
COMMAND = re.compile(r"`[^`]*`|\breccocktail .*")
OPTION = re.compile(r"(?<![\w-])--[a-z]")


def on_page(hint: str | None) -> str | None:
    """The hint without options, which no page has: parts that have some and mean nothing here are left out. Commands say where they are run."""
    if hint is None:
        return None
    for pattern, offered in OFFERED:
        hint = re.sub(pattern, offered, hint)
    kept = [part for part in hint.split("; ") if part.strip() and not OPTION.search(COMMAND.sub("", part))]
    return "; ".join(map(_placed, kept)) or None


def _placed(part: str) -> str:
    """A part that begins with a command, which no page runs, says where it is run."""
    if re.match(r"(?:run )?`?reccocktail ", part) is None:
        return part
    is_command = re.fullmatch(r"reccocktail .*|`[^`]*`", part)
    return f"where the registry is, {'run ' if is_command else ''}{part}"
