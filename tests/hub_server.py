"""A small Hugging Face Hub on the loopback: repositories, commits, LFS, access rights, and faults on demand.

It speaks as much of the Hub's HTTP interface as its own client uses for models: information, files with
redirects to a content server of another origin, ranges, ETags, uploads. It keeps everything in memory,
listens on 127.0.0.1 alone, and stops by itself after two minutes.
"""

import base64
import contextlib
import hashlib
import json
import re
import socket
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

LIFETIME = 120.0
LFS_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")
READER, WRITER, STRANGER = "hf_reader", "hf_writer", "hf_stranger"


def is_lfs(path: str) -> bool:
    return path.endswith(LFS_SUFFIXES)


def git_blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass
class Repo:
    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    pull_requests: int = 0

    def commit(self, files: dict[str, bytes], ref: str = "main") -> str:
        text = "".join(f"{path} {git_blob(content)}\n" for path, content in sorted(files.items()))
        sha = hashlib.sha1(f"{len(self.commits)} {ref}\n{text}".encode()).hexdigest()
        self.commits[sha] = files
        self.refs[ref] = sha
        return sha

    def resolve(self, revision: str) -> str | None:
        sha = self.refs.get(revision, revision)
        return sha if sha in self.commits else None


@dataclass
class Fault:
    """What goes wrong, to which requests, and how often."""

    path: str
    kind: str
    method: str = "GET"
    times: int = 1_000_000
    status: int = 503
    headers: dict[str, str] = field(default_factory=dict)
    after: int = 0


@dataclass(frozen=True)
class Seen:
    method: str
    path: str
    headers: dict[str, str]


class HubServer:
    """The Hub and its content server; use it in a `with` statement."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.renamed: dict[str, str] = {}
        self.lfs: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.seen: list[Seen] = []
        self.ranges = True
        self.claims: dict[str, str] = {}
        self.lock = threading.Lock()
        self.connections: list[socket.socket] = []
        self.stopped = threading.Event()
        self._servers = [self._serve(HubHandler), self._serve(ContentHandler)]
        self.url, self.content_url = (f"http://127.0.0.1:{s.server_address[1]}" for s in self._servers)
        self._timer = threading.Timer(LIFETIME, self.stop)
        self._timer.daemon = True
        self._timer.start()

    def _serve(self, handler: type[BaseHTTPRequestHandler]) -> ThreadingHTTPServer:
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        server.daemon_threads = True
        server.block_on_close = False
        server.hub = self  # pyright: ignore[reportAttributeAccessIssue]
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return server

    def stop(self) -> None:
        self.stopped.set()
        for server in self._servers:
            server.shutdown()
            server.server_close()
        self._servers = []
        for connection in self.connections:  # kept alive, they would go on being answered
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._timer.cancel()

    def __enter__(self) -> "HubServer":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def add(
        self, repo_id: str, files: dict[str, bytes], *, private: bool = False, gated: bool = False
    ) -> str:
        repo = self.repos.setdefault(repo_id, Repo(private=private, gated=gated))
        return repo.commit(files)

    def requests(self, pattern: str, method: str | None = None) -> list[Seen]:
        return [s for s in self.seen if re.search(pattern, s.path) and method in (None, s.method)]

    def fault_for(self, method: str, path: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.times > 0 and fault.method == method and re.search(fault.path, path):
                    fault.times -= 1
                    return fault
        return None


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 10
    routes: tuple[tuple[str, str, str], ...] = ()

    @property
    def hub(self) -> HubServer:
        return self.server.hub  # pyright: ignore[reportAttributeAccessIssue]

    def setup(self) -> None:
        super().setup()
        self.hub.connections.append(self.connection)

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def handle(self) -> None:
        try:
            super().handle()
        except (ConnectionError, TimeoutError):
            self.close_connection = True

    def do_GET(self) -> None:
        self.route()

    do_HEAD = do_POST = do_PUT = do_GET

    def route(self) -> None:
        address = urlsplit(self.path)
        self.query = parse_qs(address.query)
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers = {key.lower(): value for key, value in self.headers.items()}
        self.hub.seen.append(Seen(self.command, self.path, headers))
        self.fault = self.hub.fault_for(self.command, self.path)
        if self.fault is not None and self.fault.kind == "status":
            self.answer(self.fault.status, b"", self.fault.headers)
            return
        if self.fault is not None and self.fault.kind == "hang":
            self.hub.stopped.wait(8)
            self.close_connection = True
            return
        for method, pattern, name in self.routes:
            found = re.fullmatch(pattern, address.path)  # as sent: a slash in a revision is quoted
            if found and self.command in method.split("|"):
                parts = found.groupdict().items()
                getattr(self, name)(**{key: value and unquote(value) for key, value in parts})
                return
        self.answer(404, b"no such address")

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        if "Content-Length" not in (headers or {}):
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.send_body(body)

    def send_body(self, body: bytes) -> None:
        fault = self.fault
        if fault is not None and fault.kind == "cut":
            self.wfile.write(body[: fault.after])
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
        elif fault is not None and fault.kind == "slow":
            for start in range(0, len(body), max(1, len(body) // 8)):
                self.wfile.write(body[start : start + max(1, len(body) // 8)])
                self.wfile.flush()
                time.sleep(0.02)
        else:
            self.wfile.write(body)

    def json(self, content: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.answer(
            status, json.dumps(content).encode(), {"Content-Type": "application/json", **(headers or {})}
        )

    def error(self, status: int, code: str, message: str, headers: dict[str, str] | None = None) -> None:
        self.json(
            {"error": message}, status, {"X-Error-Code": code, "X-Error-Message": message, **(headers or {})}
        )


class ContentHandler(Handler):
    """Where large files really lie; it must never see a token."""

    routes = (
        ("GET|HEAD", r"/content/(?P<sha>[0-9a-f]{64})", "content"),
        ("PUT", r"/upload/(?P<sha>[0-9a-f]{64})", "upload"),
    )

    def content(self, sha: str) -> None:
        body = self.hub.lfs[sha]
        if self.fault is not None and self.fault.kind == "corrupt":
            body = body[:-1] + bytes([body[-1] ^ 1])
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted is None or not self.hub.ranges:
            self.answer(200, body, {"ETag": f'"{sha}"'})
            return
        first, last = int(wanted[1]), int(wanted[2] or len(body) - 1)
        part = body[first : last + 1]
        self.answer(206, part, {"Content-Range": f"bytes {first}-{first + len(part) - 1}/{len(body)}"})

    def upload(self, sha: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != sha:
            self.answer(400, b"checksum")
            return
        self.hub.lfs[sha] = self.body
        self.answer(200, b"")


REPO = r"(?P<repo_id>[\w.-]+/[\w.-]+)"


class HubHandler(Handler):
    """The Hub itself."""

    routes = (
        ("GET", rf"/api/models/{REPO}(/revision/(?P<revision>.+))?", "info"),
        ("GET|HEAD", rf"/{REPO}/resolve/(?P<revision>.+?)/(?P<filename>[^/].*)", "resolve"),
        ("POST", r"/api/repos/create", "create"),
        ("POST", r"/api/validate-yaml", "validate"),
        ("POST", rf"/api/models/{REPO}/branch/(?P<branch>.+)", "branch"),
        ("POST", rf"/api/models/{REPO}/preupload/(?P<revision>.+)", "preupload"),
        ("POST", rf"/{REPO}\.git/info/lfs/objects/batch", "batch"),
        ("POST", rf"/api/models/{REPO}/commit/(?P<revision>.+)", "commit"),
    )

    @property
    def token(self) -> str | None:
        return self.headers.get("Authorization", "").removeprefix("Bearer ") or None

    def repo(self, repo_id: str, *, write: bool = False) -> Repo | None:
        """The repository, or an answer that there is none for this token."""
        if repo_id in self.hub.renamed:
            new = self.path.replace(repo_id, self.hub.renamed[repo_id], 1)
            self.answer(307, b"", {"Location": new})
            return None
        if self.token not in (None, READER, WRITER, STRANGER):
            self.error(401, "", "Invalid credentials in Authorization header")
            return None
        repo = self.hub.repos.get(repo_id)
        if repo is None or (repo.private and self.token not in (READER, WRITER)):
            self.error(404 if self.token else 401, "RepoNotFound", "Repository not found")
            return None
        if write and self.token != WRITER:
            self.error(403, "", "You don't have the rights to write to this repository")
            return None
        return repo

    def info(self, repo_id: str, revision: str | None) -> None:
        repo = self.repo(repo_id)
        if repo is None:
            return
        sha = repo.resolve(revision or "main")
        if sha is None:
            self.error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return
        siblings = [self.sibling(path, content) for path, content in repo.commits[sha].items()]
        gated = "manual" if repo.gated else False
        self.json(
            {
                "id": repo_id,
                "modelId": repo_id,
                "sha": sha,
                "private": repo.private,
                "gated": gated,
                "siblings": siblings,
            }
        )

    def sibling(self, path: str, content: bytes) -> dict[str, Any]:
        if "blobs" not in self.query:
            return {"rfilename": path}
        found: dict[str, Any] = {"rfilename": path, "size": len(content), "blobId": git_blob(content)}
        if is_lfs(path):
            sha = self.hub.claims.get(path) or hashlib.sha256(content).hexdigest()
            found["lfs"] = {"sha256": sha, "size": len(content), "pointerSize": 134}
        return found

    def resolve(self, repo_id: str, revision: str, filename: str) -> None:
        repo = self.repo(repo_id)
        if repo is None:
            return
        if repo.gated and self.token != WRITER:
            self.error(403, "GatedRepo", "Access to this model is restricted")
            return
        sha = repo.resolve(revision)
        if sha is None:
            self.error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return
        commit = {"X-Repo-Commit": sha}
        content = repo.commits[sha].get(filename)
        if content is None:
            self.error(404, "EntryNotFound", "Entry not found", commit)
            return
        if not is_lfs(filename):
            self.answer(200, content, {"ETag": f'"{git_blob(content)}"', **commit})
            return
        digest = hashlib.sha256(content).hexdigest()
        self.hub.lfs[digest] = content
        self.answer(
            302,
            b"",
            {
                "Location": f"{self.hub.content_url}/content/{digest}?signature=secret",
                "X-Linked-Etag": f'"{digest}"',
                "X-Linked-Size": str(len(content)),
                "ETag": f'"{git_blob(content)}"',
                **commit,
            },
        )

    def create(self) -> None:
        wanted = json.loads(self.body)
        repo_id = f"{wanted.get('organization') or 'writer'}/{wanted['name']}"
        if self.token != WRITER:
            self.error(401 if self.token is None else 403, "", "Invalid username or password.")
            return
        address = {"url": f"{self.hub.url}/{repo_id}"}
        if repo_id in self.hub.repos:
            self.json({**address, "error": "You already created this model repo"}, 409)
            return
        private = wanted.get("visibility") == "private" or bool(wanted.get("private"))
        self.hub.add(repo_id, {".gitattributes": b"*.safetensors filter=lfs\n"}, private=private)
        self.json(address)

    def validate(self) -> None:
        text = json.loads(self.body)["content"]
        if not text.startswith("---\n"):
            self.json({"errors": [{"message": "no metadata"}], "warnings": []}, 400)
            return
        self.json({"errors": [], "warnings": []})

    def branch(self, repo_id: str, branch: str) -> None:
        repo = self.repo(repo_id, write=True)
        if repo is None:
            return
        if branch in repo.refs:
            self.json({"error": "Reference already exists"}, 409)
            return
        repo.refs[branch] = repo.refs["main"]
        self.json({})

    def preupload(self, repo_id: str, revision: str) -> None:
        repo = self.repo(repo_id, write="create_pr" not in self.query)
        if repo is None:
            return
        sha = repo.resolve(revision)
        if sha is None:
            self.error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return
        files = []
        for file in json.loads(self.body)["files"]:
            old = repo.commits[sha].get(file["path"])
            mode = "lfs" if is_lfs(file["path"]) else "regular"
            oid = None if old is None else hashlib.sha256(old).hexdigest() if mode == "lfs" else git_blob(old)
            files.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self.json({"files": files})

    def batch(self, repo_id: str) -> None:
        if self.repo(repo_id) is None:
            return
        objects = []
        for wanted in json.loads(self.body)["objects"]:
            action = {"upload": {"href": f"{self.hub.content_url}/upload/{wanted['oid']}"}}
            known = wanted["oid"] in self.hub.lfs
            objects.append({**wanted, "authenticated": True, **({} if known else {"actions": action})})
        self.json({"transfer": "basic", "objects": objects})

    def commit(self, repo_id: str, revision: str) -> None:
        opens_request = "create_pr" in self.query
        repo = self.repo(repo_id, write=not opens_request)
        if repo is None:
            return
        sha = repo.resolve(revision)
        assert sha is not None
        files = dict(repo.commits[sha])
        for line in self.body.splitlines():
            operation = json.loads(line)
            value = operation["value"]
            if operation["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "lfsFile":
                files[value["path"]] = self.hub.lfs[value["oid"]]
        ref = revision
        if opens_request:
            repo.pull_requests += 1
            ref = f"refs/pr/{repo.pull_requests}"
        new = repo.commit(files, ref)
        answer = {"success": True, "commitOid": new, "commitUrl": f"{self.hub.url}/{repo_id}/commit/{new}"}
        if opens_request:
            answer["pullRequestUrl"] = f"{self.hub.url}/{repo_id}/discussions/{repo.pull_requests}"
        self.json(answer)
