"""Signatures over all files of a folder, offline, by the OpenSSF's `model-signing`: a Sigstore bundle made with a key of one's own.

The key is an elliptic-curve private key in PEM: `openssl ecparam -name prime256v1 -genkey -noout -out key.pem`, whose public half is
`openssl ec -in key.pem -pubout -out key.pub`. Whoever has `model-signing` can verify, with or without us:
`model_signing verify key FOLDER --signature FOLDER/model.sig --public-key key.pub`.
"""

from __future__ import annotations

import base64
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..registry.catalog.publications import SIGNATURE
from ..registry.errors import InvalidArtifactError, UsageError
from ..registry.strict_json import parse_object

KEY_HINT = "openssl ecparam -name prime256v1 -genkey -noout -out key.pem; openssl ec -in key.pem -pubout -out key.pub"


def sign(folder: Path, signature: Path, key: Path) -> None:
    """Signs every file below the folder. Raises UsageError for the key, and where `model-signing` is not installed."""
    signing, hashing = _library()
    config = _loaded(key, lambda: signing.Config().use_elliptic_key_signer(private_key=key))
    config.set_hashing_config(hashing.Config().set_ignored_paths(paths=[signature], ignore_git_paths=True))
    config.sign(folder, signature)


def verify(folder: Path, key: Path) -> list[str]:
    """What is wrong with the folder's files as its signature has them: nothing, if it is sound and by this public key.

    Files that nobody signed are not looked at; `signed_files` returns those. Raises UsageError as `sign` does.
    """
    from importlib import import_module

    _library()
    verifying = import_module("model_signing.verifying")
    config = _loaded(key, lambda: verifying.Config().use_elliptic_key_verifier(public_key=key))
    config.set_ignore_unsigned_files(True)
    with tempfile.TemporaryDirectory(prefix="reccocktail-verify-") as temporary:
        plain = _plain(folder, Path(temporary) / "model")
        missing = [name for name in sorted(signed_files(folder)) if not (plain / name).is_file()]
        if missing:
            return [f"{name} was signed and is missing" for name in missing]
        try:
            config.verify(plain, plain / SIGNATURE)
        except Exception as error:  # noqa: BLE001  the library and those below it raise many kinds for what is not sound
            changed = re.findall(r"Hash mismatch for '([^']+)'", f"{error}".replace("\\'", "'"))
            if changed:
                return [f"{name} is not what was signed" for name in changed]
            return [" ".join(f"{error}".split()) or type(error).__name__]
    return []


def signed_files(folder: Path) -> frozenset[str]:
    """The paths that the signature says it covers. Raises InvalidArtifactError."""
    return frozenset(
        str(each["name"]) for each in _payload((folder / SIGNATURE).read_bytes())["predicate"]["resources"]
    )


def alike(one: bytes, other: bytes) -> bool:
    """Whether two signatures are of the same content by the same key: each is made with a random number, so their bytes differ."""
    try:
        return _essence(one) == _essence(other)
    except InvalidArtifactError:
        return False


def holds(signature: bytes, folder: Path, key: Path | None) -> bool:
    """Whether a signature is by the public half of this private key, and of the folder's files as they are."""
    if key is None:
        return False
    from importlib import import_module

    _library()
    serialization = import_module("cryptography.hazmat.primitives.serialization")
    private = _loaded(key, lambda: serialization.load_pem_private_key(key.read_bytes(), None))
    public = private.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    with tempfile.TemporaryDirectory(prefix="reccocktail-verify-") as temporary:
        plain = _plain(folder, Path(temporary) / folder.name)
        (plain / SIGNATURE).unlink(missing_ok=True)  # a link, perhaps
        (plain / SIGNATURE).write_bytes(signature)
        (half := Path(temporary) / "key.pub").write_bytes(public)
        return not verify(plain, half)


def _essence(signature: bytes) -> Any:
    resources = _payload(signature)["predicate"]["resources"]
    return parse_object(signature, SIGNATURE)["verificationMaterial"].get("publicKey"), resources


def _payload(signature: bytes) -> dict[str, Any]:
    try:
        found = parse_object(base64.b64decode(parse_object(signature, SIGNATURE)["dsseEnvelope"]["payload"]), SIGNATURE)
        if not [str(each["name"]) for each in found["predicate"]["resources"]]:
            raise ValueError("it lists no file")
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise InvalidArtifactError(f"{SIGNATURE} is not a model signature: {error!r}") from error
    return found


def _library() -> tuple[Any, Any]:
    from importlib import import_module

    try:
        return import_module("model_signing.signing"), import_module("model_signing.hashing")
    except ImportError as error:
        raise UsageError(
            f"signatures need the package model-signing: {error}", hint="pip install 'reccocktail[sign]'"
        ) from error


def _loaded(key: Path, load: Callable[[], Any]) -> Any:
    """What the library makes of a key. No error shows what is in the file."""
    if not key.is_file():
        raise UsageError(f"there is no key {key}", hint=KEY_HINT)
    try:
        return load()
    except TypeError as error:
        raise UsageError(
            f"{key} is encrypted, or not a signing key", hint="give it decrypted, from a file only you can read"
        ) from error
    except Exception as error:
        raise UsageError(
            f"{key} is not an elliptic-curve key in PEM ({type(error).__name__})", hint=KEY_HINT
        ) from error


def _plain(folder: Path, target: Path) -> Path:
    """The folder with files in place of links: the Hub's cache is links, which the library does not follow."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            there = target / path.relative_to(folder)
            there.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(path.resolve(), there)
            except OSError:
                shutil.copyfile(path, there)
    return target
