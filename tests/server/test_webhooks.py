"""Webhooks over HTTP: for admins, with the rules that the command has, and delivered beside a server."""

from __future__ import annotations

import threading

from reccocktail.server.app import API, ServerOptions
from reccocktail.server.running import _delivering


def test_webhooks_are_kept_by_admins_alone(client, stocked, open_client, monkeypatch):
    monkeypatch.delenv("OPS_SECRET", raising=False)
    new = {"name": "ops", "url": "https://93.184.215.14/hook", "secret_env": "OPS_SECRET", "kinds": ["alias.moved"]}
    made = client.post(f"{API}/webhooks", json=new)
    assert (made.status_code, made.json()["name"]) == (201, "ops"), made.text
    assert client.get(f"{API}/webhooks").json() == [made.json()] == [stocked.webhooks.get("ops").to_json()]
    unsigned = client.post(f"{API}/webhooks/ops:test")
    assert (unsigned.status_code, unsigned.json()["error"]["code"]) == (502, "webhook")
    assert all("the server" in unsigned.json()["error"][part] for part in ("message", "hint")), "it is not the caller's"
    edited = client.patch(f"{API}/webhooks/ops", json={"active": False})
    assert (edited.json()["active"], edited.json()["url"]) == (False, new["url"])
    for url in ("http://93.184.215.14/", "https://127.0.0.1/", "https://10.0.0.1/", "file:///etc/passwd"):
        answer = client.patch(f"{API}/webhooks/ops", json={"url": url})
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "webhook_target"), url
    assert client.get(f"{API}/deliveries", params={"webhook": "ops"}).json() == {"items": [], "next": None}
    assert client.get(f"{API}/deliveries/7/attempts").status_code == 404
    assert client.post(f"{API}/deliveries/7:redeliver").status_code == 404
    secret = stocked.tokens.create("ci", ["read", "register", "publish"], lasts=None).secret
    other = open_client(stocked, ServerOptions(login=True), Authorization=f"Bearer {secret}")
    assert other.get(f"{API}/webhooks").status_code == 403
    assert "webhooks" not in other.get(f"{API}/export").json()
    assert client.get(f"{API}/export").json()["webhooks"]["ops"]["url"] == new["url"]
    assert client.delete(f"{API}/webhooks/ops").json()["name"] == "ops"
    assert client.get(f"{API}/webhooks/ops").status_code == 404


def test_delivering_ends_with_the_server():
    begun, done = threading.Event(), threading.Event()

    def deliver(ended: threading.Event) -> None:
        begun.set()
        ended.wait()
        done.set()

    with _delivering(deliver):
        assert begun.wait(60)
        assert not done.is_set()
    assert done.wait(60)
