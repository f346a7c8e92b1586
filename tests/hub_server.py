"""A Hugging Face Hub on the loopback, for the real client: commits, branches, tags, Git LFS, tokens.

It follows the HTTP API as https://huggingface.co/docs/hub/api and `huggingface_hub` use it: error codes in `X-Error-Code`,
LFS files served by a redirect to another host, `409` for what exists, `412` for a parent that is not the head. Xet is left
out, so clients need `HF_HUB_DISABLE_XET=1`, which `LoopbackHub.env` sets.
"""

from __future__ import annotations

import base64
import fnmatch
import hashlib
import json
import re
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

LFS_SUFFIXES = (".safetensors", ".bin", ".pt", ".model", ".gguf")
GITATTRIBUTES = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES).encode()
PAGE = 5  # entries of a listing that come at once; the Hub's pages are longer, and are followed in the same way
SIGNED = "5ecre7-0f-4-s1gned-url"  # whoever knows it may write, for a while
DATE = "2026-01-01T00:00:00.000Z"


class Request(NamedTuple):
    """One line of the server's log."""

    method: str
    path: str
    authorized: bool


@dataclass(frozen=True)
class Commit:
    id: str
    parent: str | None
    message: str
    files: dict[str, bytes]
    description: str = ""


@dataclass
class Fault:
    """What goes wrong with the next `times` requests whose "METHOD /path" the pattern finds.

    `status`: answered with it. `cut`: the connection is dropped after so many bytes of the body. `lost`: the request is carried out,
    and the connection is dropped instead of answering. `delay`: seconds before it is looked at.
    """

    pattern: str
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    message: str = "Internal Error - We're working hard to fix this as soon as possible!"
    cut: int | None = None
    lost: bool = False
    delay: float = 0.0
    times: int = 1
    seen: int = 0


@dataclass
class Repo:
    private: bool = False
    gated: bool = False
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    uploaded: set[str] = field(default_factory=set)  # objects of LFS that were sent to this repository

    def commit(self, files: dict[str, bytes], message: str, description: str = "") -> str:
        parent = self.branches.get("main")
        self.uploaded |= {_sha256(data) for data in files.values()}
        content = [
            parent,
            message,
            description,
            sorted((path, hashlib.sha1(data).hexdigest()) for path, data in files.items()),
        ]
        commit = Commit(hashlib.sha1(json.dumps(content).encode()).hexdigest(), parent, message, files, description)
        self.commits[commit.id] = commit
        self.branches["main"] = commit.id
        return commit.id

    def at(self, revision: str) -> Commit | None:
        return self.commits.get(self.branches.get(revision) or self.tags.get(revision) or revision)


class Refusal(Exception):  # noqa: N818 - an answer of the server, not an error of this program
    def __init__(self, status: int, message: str, code: str = "", **body: object) -> None:
        self.status, self.message, self.code, self.body = status, message, code, body


class LoopbackHub:
    """The server, running until `close`. `token` may write everywhere but to the names in `foreign`."""

    Fault = Fault

    def __init__(self, token: str = "hf_loopback_token_of_the_tests") -> None:
        self.token = token
        self.role = "write"  # what the token says of itself
        self.foreign: set[str] = set()
        self.requests: list[Request] = []
        self.before_commit: Callable[[], object] | None = None
        self.faults: list[Fault] = []
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.lock = threading.RLock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def add_repo(
        self, repo_id: str, files: dict[str, bytes], *, private: bool = False, gated: bool = False, message: str = "add"
    ) -> str:
        """A commit that leaves exactly these files on `main`; makes the repository where it is missing."""
        with self.lock:
            repo = self.repos.setdefault(repo_id, Repo())
            repo.private, repo.gated = private, gated
            self.objects |= {_sha256(data): data for data in files.values()}
            return repo.commit(dict(files), message)

    def files(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        commit = self.repos[repo_id].at(revision)
        assert commit, f"{repo_id} has no {revision}"
        return dict(commit.files)

    def head(self, repo_id: str) -> str:
        return self.repos[repo_id].branches["main"]

    def history(self, repo_id: str) -> list[str]:
        """The messages of the commits on `main`, newest first."""
        repo, messages = self.repos[repo_id], []
        commit = repo.at("main")
        while commit:
            messages.append(commit.message)
            commit = repo.commits.get(commit.parent or "")
        return messages

    def descriptions(self, repo_id: str) -> list[str]:
        """The descriptions of the commits on `main`, newest first."""
        repo = self.repos[repo_id]
        return [repo.commits[commit].description for commit in _line(repo, repo.branches["main"])]

    def uploads(self) -> list[str]:
        """The names of the objects that were sent to the storage host, in order."""
        paths = [urlsplit(request.path).path for request in self.requests if request.method == "PUT"]
        return [path.rpartition("/")[2] for path in paths if path.startswith("/lfs/")]

    def tags(self, repo_id: str) -> dict[str, str]:
        return dict(self.repos[repo_id].tags)

    def private(self, repo_id: str) -> bool:
        return self.repos[repo_id].private

    def env(self, home: Path) -> dict[str, str]:
        """The environment that points a client at this server, logged in, with its cache in `home`."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_TOKEN": self.token,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: LoopbackHub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name in the standard library
        pass

    def _handle(self) -> None:
        fault = self._fault()
        if fault and fault.cut is not None:
            self.rfile.read(min(fault.cut, int(self.headers.get("Content-Length") or 0)))
            return self._hang_up()
        body = self._read()
        url = urlsplit(self.path)
        self.query = parse_qs(url.query)
        self.authorized = self.headers.get("Authorization") == f"Bearer {self.hub.token}"
        self.hub.requests.append(Request(self.command, self.path, self.authorized))
        if fault:
            time.sleep(fault.delay)
            if fault.status is not None:
                shown = {"X-Error-Message": fault.message} | fault.headers
                return self._json({"error": fault.message}, fault.status, shown)
        self.lost = bool(fault and fault.lost)
        try:
            if self.headers.get("Authorization") and not self.authorized:
                raise Refusal(401, "Invalid credentials in Authorization header")
            for method, pattern, answer in _ROUTES:
                if self.command in method and (match := re.fullmatch(pattern, url.path)):
                    with self.hub.lock:
                        return answer(self, body, **{name: unquote(text) for name, text in match.groupdict("").items()})
            raise Refusal(404, f"no such endpoint: {self.command} {url.path}")
        except Refusal as refusal:
            headers = {"X-Error-Message": refusal.message} | ({"X-Error-Code": refusal.code} if refusal.code else {})
            self._json({"error": refusal.message, **refusal.body}, refusal.status, headers)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _handle  # noqa: N815 - the names in the standard library

    lost = False

    def _fault(self) -> Fault | None:
        with self.hub.lock:
            for fault in self.hub.faults:
                if fault.times > fault.seen and re.search(fault.pattern, f"{self.command} {urlsplit(self.path).path}"):
                    fault.seen += 1
                    return fault
        return None

    def _hang_up(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def _read(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _send(self, body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        if self.lost:
            self._hang_up()
            return
        self.send_response(status, HTTPStatus(status).phrase)
        for name, value in ({"Content-Length": str(len(body))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _json(self, answer: object, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self._send(json.dumps(answer).encode(), status, {"Content-Type": "application/json"} | (headers or {}))

    # who may do what

    def _repo(self, repo: str) -> Repo:
        found = self.hub.repos.get(repo)
        if not found or (found.private and not self.authorized):
            # The Hub does not tell a stranger which private names exist.
            raise Refusal(404 if self.authorized else 401, "Repository not found", "RepoNotFound")
        return found

    def _read_files(self, repo: str) -> Repo:
        found = self._repo(repo)
        if found.gated:
            raise Refusal(403, f"Access to model {repo} is restricted", "GatedRepo")
        return found

    def _write(self, namespace: str) -> None:
        if not self.authorized:
            raise Refusal(401, "Invalid username or password.")
        if namespace in self.hub.foreign:
            raise Refusal(403, f"You don't have the rights to create a model under the namespace {namespace!r}")

    def _writable(self, repo: str) -> Repo:
        self._write(repo.partition("/")[0])
        return self._repo(repo)

    def _commit(self, repo: Repo, rev: str) -> Commit:
        if not (commit := repo.at(rev)):
            raise Refusal(404, f"Invalid rev id: {rev}", "RevisionNotFound")
        return commit

    # reading

    def whoami(self, body: bytes) -> None:
        self._write("")
        self._json({"type": "user", "name": "tester", "orgs": [], "auth": {"accessToken": {"role": self.hub.role}}})

    def info(self, body: bytes, repo: str, rev: str = "main") -> None:
        found = self._repo(repo)
        commit = self._commit(found, rev)
        siblings = [
            {"rfilename": path} | (_sibling(path, data) if "blobs" in self.query else {})
            for path, data in sorted(commit.files.items())
        ]
        answer = {"sha": commit.id, "private": found.private, "gated": "manual" if found.gated else False}
        self._json({"_id": repo, "id": repo, "modelId": repo, "siblings": siblings, "lastModified": DATE} | answer)

    def tree(self, body: bytes, repo: str, rev: str, folder: str = "") -> None:
        commit = self._commit(self._read_files(repo), rev)
        below = folder.strip("/") + "/" if folder.strip("/") else ""
        paths = sorted(path for path in commit.files if path.startswith(below))
        folders = {parent.as_posix() for path in paths for parent in Path(path).parents if parent.as_posix() != "."}
        entries = [self._entry(commit, path) for path in paths]
        entries += [_folder(path) for path in sorted(folders) if path.startswith(below)]
        if self.query.get("recursive", ["false"])[0].lower() not in ("true", "1"):
            entries = [entry for entry in entries if "/" not in entry["path"][len(below) :]]
        start = int(self.query.get("cursor", ["0"])[0])
        link = {}
        if start + PAGE < len(entries):
            again = "&".join(f"{k}={v[0]}" for k, v in self.query.items() if k != "cursor")
            link = {"Link": f'<{self.hub.url}{urlsplit(self.path).path}?{again}&cursor={start + PAGE}>; rel="next"'}
        self._json(entries[start : start + PAGE], headers=link)

    def commits(self, body: bytes, repo: str, rev: str) -> None:
        found = self._repo(repo)
        listed = [found.commits[each] for each in _line(found, self._commit(found, rev).id)]
        self._json(
            [
                {
                    "id": c.id,
                    "title": c.message,
                    "message": c.description,
                    "authors": [{"user": "tester"}],
                    "date": DATE,
                }
                for c in listed
            ]
        )

    def paths_info(self, body: bytes, repo: str, rev: str) -> None:
        commit = self._commit(self._read_files(repo), rev)
        form = parse_qs(body.decode())
        self.query["expand"] = form.get("expand", ["false"])
        self._json([self._entry(commit, path) for path in form.get("paths", []) if path in commit.files])

    def _entry(self, commit: Commit, path: str) -> dict[str, Any]:
        last = {"lastCommit": {"id": commit.id, "title": commit.message, "date": DATE}}
        expanded = self.query.get("expand", ["false"])[0].lower() in ("true", "1")
        return {"type": "file", "path": path} | _blob(path, commit.files[path]) | (last if expanded else {})

    def refs(self, body: bytes, repo: str) -> None:
        found = self._repo(repo)
        branches = [{"name": n, "ref": f"refs/heads/{n}", "targetCommit": c} for n, c in found.branches.items()]
        tags = [{"name": n, "ref": f"refs/tags/{n}", "targetCommit": c} for n, c in found.tags.items()]
        self._json({"branches": branches, "tags": tags, "converts": [], "pullRequests": []})

    def resolve(self, body: bytes, repo: str, rev: str, path: str) -> None:
        commit = self._commit(self._read_files(repo), rev)
        headers = {"X-Repo-Commit": commit.id, "Accept-Ranges": "bytes"}
        if path not in commit.files:
            raise Refusal(404, "Entry not found", "EntryNotFound")
        data = commit.files[path]
        if not path.endswith(LFS_SUFFIXES):
            return self._content(data, headers | {"ETag": f'"{_git_sha(data)}"'})
        # Another host, as the Hub's: the client has to leave its token behind.
        linked = {"X-Linked-Etag": f'"{_sha256(data)}"', "X-Linked-Size": str(len(data))}
        where = {"Location": f"http://localhost:{self.hub.port}/cdn/{_sha256(data)}"}
        return self._send(b"", 302, headers | linked | where)

    def cdn(self, body: bytes, oid: str) -> None:
        if self.headers.get("Authorization"):
            raise Refusal(400, "a token was sent to the storage host")
        self._content(self.hub.objects[oid], {"ETag": f'"{oid}"', "Accept-Ranges": "bytes"})

    def _content(self, data: bytes, headers: dict[str, str]) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if not asked:
            return self._send(data, 200, headers)
        first, last = int(asked[1]), min(int(asked[2] or len(data) - 1), len(data) - 1)
        if first >= len(data):
            return self._send(b"", 416, headers | {"Content-Range": f"bytes */{len(data)}"})
        span = {"Content-Range": f"bytes {first}-{last}/{len(data)}"}
        return self._send(data[first : last + 1], 206, headers | span)

    # writing

    def create(self, body: bytes) -> None:
        asked = json.loads(body)
        namespace = asked.get("organization") or "tester"
        self._write(namespace)
        repo = f"{namespace}/{asked['name']}"
        url = f"{self.hub.url}/{repo}"
        if repo in self.hub.repos:
            raise Refusal(409, "You already created this model repo", url=url)
        self.hub.repos[repo] = Repo(private=asked.get("visibility") == "private" or bool(asked.get("private")))
        self.hub.repos[repo].commit({".gitattributes": GITATTRIBUTES}, "initial commit")
        self._json({"url": url, "name": repo, "id": repo})

    def delete(self, body: bytes) -> None:
        asked = json.loads(body)
        repo = f"{asked.get('organization') or 'tester'}/{asked['name']}"
        self._writable(repo)
        del self.hub.repos[repo]
        self._json({})

    def validate_yaml(self, body: bytes) -> None:
        block = re.match(r"---\n(.*?)\n---\n", json.loads(body)["content"], re.DOTALL)
        try:
            yaml.safe_load(block[1] if block else "")
        except yaml.YAMLError as error:
            return self._json({"errors": [{"message": str(error)}], "warnings": []}, 400)
        return self._json({"errors": [], "warnings": [] if block else [{"message": "empty or missing yaml metadata"}]})

    def preupload(self, body: bytes, repo: str, rev: str) -> None:
        there = self._commit(self._writable(repo), rev).files
        asked = json.loads(body)
        rules = asked.get("gitIgnore", there.get(".gitignore", b"").decode()).split()

        def mode(path: str) -> dict[str, object]:
            lfs = path.endswith(LFS_SUFFIXES)
            ignored = any(fnmatch.fnmatch(path, rule) for rule in rules)
            known = {"oid": (_sha256 if lfs else _git_sha)(there[path])} if path in there else {}
            return {"path": path, "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": ignored} | known

        for file in asked["files"]:
            if len(base64.b64decode(file["sample"])) != min(512, file["size"]):
                raise Refusal(400, f"the sample of {file['path']} is not its first 512 bytes")
        self._json({"files": [mode(file["path"]) for file in asked["files"]]})

    def lfs_batch(self, body: bytes, repo: str) -> None:
        found = self._writable(repo)
        if self.headers.get("Accept") != "application/vnd.git-lfs+json":
            raise Refusal(406, "Git LFS asks for application/vnd.git-lfs+json")

        def actions(wanted: dict[str, Any]) -> dict[str, object]:
            if wanted["oid"] in found.uploaded:
                return wanted
            upload = {
                "href": f"http://localhost:{self.hub.port}/lfs/{repo}/objects/{wanted['oid']}?X-Amz-Signature={SIGNED}"
            }
            return wanted | {"actions": {"upload": upload, "verify": {"href": f"{self.hub.url}/lfs/{repo}/verify"}}}

        self._json({"transfer": "basic", "objects": [actions(wanted) for wanted in json.loads(body)["objects"]]})

    def lfs_put(self, body: bytes, repo: str, oid: str) -> None:
        if self.headers.get("Authorization"):
            raise Refusal(400, "a token was sent to the storage host")
        if self.query.get("X-Amz-Signature") != [SIGNED]:
            raise Refusal(403, "the URL is not signed")
        if _sha256(body) != oid:
            raise Refusal(400, "the content is not that of its name")
        self.hub.objects[oid] = body
        self.hub.repos[repo].uploaded.add(oid)
        self._send(b"")

    def lfs_verify(self, body: bytes, repo: str) -> None:
        self._writable(repo)
        sent = json.loads(body)
        if len(self.hub.objects.get(sent["oid"], b"")) != sent["size"]:
            raise Refusal(404, "no such object")
        self._json({})

    def commit(self, body: bytes, repo: str, rev: str) -> None:
        found = self._writable(repo)
        if interrupt := self.hub.before_commit:
            self.hub.before_commit = None
            interrupt()
        lines = [json.loads(line) for line in body.splitlines()]
        if self.headers.get("Content-Type") != "application/x-ndjson" or lines[0]["key"] != "header":
            raise Refusal(400, "a commit is lines of JSON that begin with its header")
        header = lines[0]["value"]
        head = self._commit(found, rev)
        if header.get("parentCommit", head.id) != head.id:
            raise Refusal(412, "A commit has happened since. Please refresh and try again.")
        files = dict(head.files)
        for line in lines:
            _apply(files, self.hub.objects, found.uploaded, line["key"], line["value"])
        oid = found.commit(files, header["summary"], header["description"])
        url = f"{self.hub.url}/{repo}/commit/{oid}"
        self._json({"success": True, "commitOid": oid, "commitUrl": url, "hookOutput": ""})

    def settings(self, body: bytes, repo: str) -> None:
        found = self._writable(repo)
        if (visibility := json.loads(body).get("visibility")) not in ("private", "public", None):
            raise Refusal(400, f"no such visibility: {visibility}")
        found.private = found.private if visibility is None else visibility == "private"
        self._json({"private": found.private, "gated": found.gated})

    def tag(self, body: bytes, repo: str, rev: str) -> None:
        found = self._writable(repo)
        name = json.loads(body)["tag"]
        if name in found.tags:
            raise Refusal(409, "Tag reference exists already")
        found.tags[name] = self._commit(found, rev).id
        self._json({})


def _apply(
    files: dict[str, bytes], objects: dict[str, bytes], uploaded: set[str], key: str, value: dict[str, Any]
) -> None:
    if key == "file":
        files[value["path"]] = base64.b64decode(value["content"])
        objects[_sha256(files[value["path"]])] = files[value["path"]]
    elif key == "lfsFile":
        if value["oid"] not in uploaded or value["algo"] != "sha256" or len(objects[value["oid"]]) != value["size"]:
            raise Refusal(400, f"LFS object {value['oid']} was never uploaded")
        files[value["path"]] = objects[value["oid"]]
    elif key == "deletedFile":
        if files.pop(value["path"], None) is None:
            raise Refusal(404, "A file with this name doesn't exist", "EntryNotFound")
    elif key == "deletedFolder":
        for path in [path for path in files if path.startswith(value["path"].rstrip("/") + "/")]:
            del files[path]


def _line(repo: Repo, commit: str) -> list[str]:
    """The commit and those before it."""
    found = []
    while commit:
        found.append(commit)
        commit = repo.commits[commit].parent or ""
    return found


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _git_sha(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _folder(path: str) -> dict[str, Any]:
    return {"type": "directory", "path": path, "oid": _git_sha(path.encode()), "size": 0}


def _blob(path: str, data: bytes) -> dict[str, Any]:
    """Size and git id of a file; one in LFS is a pointer to git, and its content is named by SHA-256."""
    if not path.endswith(LFS_SUFFIXES):
        return {"size": len(data), "oid": _git_sha(data)}
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{_sha256(data)}\nsize {len(data)}\n".encode()
    lfs = {"oid": _sha256(data), "size": len(data), "pointerSize": len(pointer)}
    return {"size": len(data), "oid": _git_sha(pointer), "lfs": lfs}


def _sibling(path: str, data: bytes) -> dict[str, Any]:
    """The same facts under the names of the model's information."""
    blob = _blob(path, data)
    lfs = {"lfs": blob["lfs"] | {"sha256": blob["lfs"]["oid"]}} if "lfs" in blob else {}
    return {"size": blob["size"], "blobId": blob["oid"]} | lfs


_ID = r"(?P<repo>[^/]+(?:/[^/]+)?)"
_REV = r"(?P<rev>[^/]+)"
_ROUTES: list[tuple[tuple[str, ...], str, Callable[..., None]]] = [
    (("GET",), r"/api/whoami-v2", _Handler.whoami),
    (("GET",), rf"/api/models/{_ID}/revision/{_REV}", _Handler.info),
    (("GET",), rf"/api/models/{_ID}/tree/{_REV}(?P<folder>/.*)?", _Handler.tree),
    (("GET",), rf"/api/models/{_ID}/refs", _Handler.refs),
    (("GET",), rf"/api/models/{_ID}", _Handler.info),
    (("GET", "HEAD"), rf"/{_ID}/resolve/{_REV}/(?P<path>.+)", _Handler.resolve),
    (("GET", "HEAD"), r"/cdn/(?P<oid>[0-9a-f]{64})", _Handler.cdn),
    (("POST",), rf"/api/models/{_ID}/paths-info/{_REV}", _Handler.paths_info),
    (("POST",), r"/api/repos/create", _Handler.create),
    (("DELETE",), r"/api/repos/delete", _Handler.delete),
    (("POST",), r"/api/validate-yaml", _Handler.validate_yaml),
    (("POST",), rf"/api/models/{_ID}/preupload/{_REV}", _Handler.preupload),
    (("POST",), rf"/{_ID}\.git/info/lfs/objects/batch", _Handler.lfs_batch),
    (("POST",), rf"/lfs/{_ID}/verify", _Handler.lfs_verify),
    (("PUT",), rf"/lfs/{_ID}/objects/(?P<oid>[0-9a-f]{{64}})", _Handler.lfs_put),
    (("GET",), rf"/api/models/{_ID}/commits/{_REV}", _Handler.commits),
    (("PUT",), rf"/api/models/{_ID}/settings", _Handler.settings),
    (("POST",), rf"/api/models/{_ID}/commit/{_REV}", _Handler.commit),
    (("POST",), rf"/api/models/{_ID}/tag/{_REV}", _Handler.tag),
]
