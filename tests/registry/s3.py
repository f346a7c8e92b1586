"""An S3 server on loopback, and a look at what is in it that does not go through our code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import boto3
import pytest
from botocore.loaders import JSONFileLoader
from moto.server import ThreadedMotoServer

SECRET = "nobody-may-read-this"


@contextmanager
def serve(patch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A boto3 client of an empty server with the bucket `shop`; the environment leads to it."""
    _keep_descriptions(patch)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        patch.delenv(name, raising=False)
    patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    patch.setenv("AWS_ACCESS_KEY_ID", "key")
    patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    client = boto3.client("s3")
    client.create_bucket(Bucket="shop")
    try:
        yield client
    finally:
        server.stop()


_read = JSONFileLoader._load_file


@cache
def _read_once(path: str, open_method: Any) -> Any:
    return _read(JSONFileLoader(), path, open_method)


def _keep_descriptions(patch: pytest.MonkeyPatch) -> None:
    """The descriptions of S3, a megabyte that every client reads anew, are read once for all stores."""
    patch.setattr(JSONFileLoader, "_load_file", lambda _, path, open_method: _read_once(path, open_method))


def keys(client: Any) -> list[str]:
    """The keys in the bucket `shop`."""
    return [found["Key"] for found in client.list_objects_v2(Bucket="shop").get("Contents", ())]
