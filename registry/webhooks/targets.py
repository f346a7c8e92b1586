"""Where events may be sent: the URL of a target, and the addresses that its name leads to.

A name is resolved once, its addresses are checked, and the connection is made to one of these very addresses: a name server that
answers differently the second time (DNS rebinding) gains nothing.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable
from dataclasses import dataclass

from ..catalog.references import check_text
from ..errors import WebhookTargetError
from ..redaction import check_no_secret

LONGEST_URL = 2000  # characters
PORTS = {"http": 80, "https": 443}
_NAT64 = ipaddress.ip_network("64:ff9b::/96")  # RFC 6052: the last 32 bits are an IPv4 address

Resolve = Callable[[str, int], list[str]]
"""(host, port) → IP addresses, at least one. Raises OSError."""


@dataclass(frozen=True)
class Target:
    """A URL in parts; `host` is as in a certificate, `path` begins with a slash and has the query."""

    scheme: str
    host: str
    port: int
    path: str


def parse(url: str, *, allow_private: bool) -> Target:
    """Raises WebhookTargetError for what is no URL to send events to; UsageError where it has a secret in it."""
    from httpx2 import URL, InvalidURL

    check_no_secret("URL", check_text("URL", url))
    try:
        found = URL(url)
    except InvalidURL as error:
        raise WebhookTargetError(f"this is no URL: {error}", hint="write https://host/path") from error
    if found.scheme not in PORTS or not found.host or len(url) > LONGEST_URL or not url.isprintable():
        raise WebhookTargetError(
            f"a webhook's target is an https URL of at most {LONGEST_URL} characters, not {url[:100]!r}",
            hint="write https://host/path",
        )
    if found.userinfo or found.fragment:
        raise WebhookTargetError(
            "the URL of a webhook has no user, password or fragment", hint="receivers check the signature instead"
        )
    if found.scheme == "http" and not allow_private:
        raise WebhookTargetError(
            f"{url} is not encrypted", hint="write https://…; --allow-private permits http too, for your own network"
        )
    port = PORTS[found.scheme] if found.port is None else found.port
    if not 0 < port < 65536:
        raise WebhookTargetError(f"there is no port {port}", hint="ports are 1 to 65535")
    return Target(found.scheme, found.raw_host.decode("ascii"), port, found.raw_path.decode("ascii"))


def resolve(host: str, port: int) -> list[str]:
    """The addresses of a host by the system's own resolver. Raises OSError."""
    found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
    return [str(entry[4][0]) for entry in found]


def addresses(target: Target, *, allow_private: bool, resolve: Resolve = resolve) -> list[str]:
    """Those that the target may be reached at, in the resolver's order. Raises WebhookTargetError if one of them is not public."""
    try:
        found = [*dict.fromkeys(resolve(target.host, target.port))]
    except (OSError, UnicodeError) as error:
        raise WebhookTargetError(f"the name {target.host} cannot be resolved: {error}") from error
    inside = [each for each in found if not is_public(each)]
    if inside and not allow_private:
        where = inside[0] if inside[0] == target.host.strip("[]") else f"{target.host}, which is at {inside[0]},"
        raise WebhookTargetError(
            f"{where} has no public address",
            hint="--allow-private permits it, where the target is meant to be in your own network",
        )
    return found


def is_public(address: str) -> bool:
    """Whether an IP address is one of the internet: not private, loopback, link-local, shared, multicast or reserved, however written."""
    try:
        found = _inner(ipaddress.ip_address(address.partition("%")[0]))
    except ValueError:
        return False
    return found.is_global and not (found.is_multicast or found.is_reserved or found.is_unspecified)


def _inner(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """The IPv4 address that an IPv6 address carries, if it does."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    teredo = address.teredo
    return address.ipv4_mapped or address.sixtofour or (teredo[1] if teredo else None) or address
