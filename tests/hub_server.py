"""A Hugging Face hub on loopback: its `resolve` URLs, with redirects, ranges, tokens and cut connections."""

import hashlib
import http.server
import re
import threading
from dataclasses import dataclass, field

RESOLVE = re.compile(r"/((?:[^/]+/)?[^/]+)/resolve/(.+)/([^/]+)")


@dataclass
class Hub:
    """What it has, how it behaves, and what was asked for."""

    repos: dict[str, dict[str, dict[str, bytes]]] = field(default_factory=dict)
    """repository -> commit -> file name -> content."""
    refs: dict[str, dict[str, str]] = field(default_factory=dict)
    """repository -> branch or tag -> commit."""
    moved: dict[str, str] = field(default_factory=dict)
    private: dict[str, str] = field(default_factory=dict)
    """repository -> the token that opens it."""
    gated: set[str] = field(default_factory=set)
    cuts: int = 0
    """So many answers of the file store end in the middle."""
    stops_at: int | None = None
    """So many bytes of a file the store sends, sets `has_stopped`, and waits until it may go on (`goes_on`)."""
    has_stopped: threading.Event = field(default_factory=threading.Event)
    goes_on: threading.Event = field(default_factory=threading.Event)
    ignores_ranges: bool = False
    down: bool = False
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    """Method, path and range of every request."""
    url: str = ""
    store: str = ""
    """Of the file store: another host, as it is there, which must not get the token."""

    def add(self, repo, files, commit="a" * 40, ref="main"):
        self.repos.setdefault(repo, {})[commit] = files
        self.refs.setdefault(repo, {})[ref] = commit

    def asked_for(self, method="GET"):
        """The names of the files that were asked for by that method, from the hub or from its store."""
        paths = [path for m, path, _ in self.requests if m == method]
        return [path.rsplit("/", 1)[1] for path in paths if path.startswith("/store/") or RESOLVE.fullmatch(path)]


def serve(hub):
    """Start it; the server, whose `shutdown` and `server_close` end it."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self):
            self.do_GET()

        def do_GET(self):
            hub.requests.append((self.command, self.path, self.headers.get("Range")))
            if hub.down:
                self.answer(503, {})
            elif self.path.startswith("/store/"):
                self.store(self.path.removeprefix("/store/"))
            elif found := RESOLVE.fullmatch(self.path):
                self.resolve(*found.groups())
            else:
                self.answer(404, {})

        def resolve(self, repo, revision, file):
            token = self.headers.get("Authorization", "").removeprefix("Bearer ")
            if repo in hub.moved:
                return self.answer(307, {"Location": self.path.replace(f"/{repo}/", f"/{hub.moved[repo]}/", 1)})
            if repo not in hub.repos or hub.private.get(repo, token) != token:  # the hub doesn't tell the two apart
                return self.refuse(401, "RepoNotFound", "Repository not found")
            if repo in hub.gated and file != "README.md":
                return self.refuse(403, "GatedRepo", "Access to model is restricted")
            commit = hub.refs[repo].get(revision, revision)
            if commit not in hub.repos[repo]:
                return self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            content = hub.repos[repo][commit].get(file)
            if content is None:
                return self.refuse(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": commit})
            headers = {"X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
            if not file.endswith(".safetensors"):  # in Git itself
                blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
                return self.answer(200, {**headers, "ETag": f'"{blob}"'}, content)
            digest = hashlib.sha256(content).hexdigest()  # in the file store (LFS)
            headers |= {"X-Linked-Size": str(len(content)), "X-Linked-ETag": f'"{digest}"', "ETag": f'"{commit}"'}
            # What a client with hf_xet would take instead; it isn't there.
            headers |= {"X-Xet-Hash": digest, "Link": f'<{hub.url}/api/xet-read-token>; rel="xet-auth"'}
            return self.answer(302, {**headers, "Location": f"{hub.store}/store/{repo}/{commit}/{file}"})

        def store(self, path):
            assert "Authorization" not in self.headers
            repo, commit, file = path.rsplit("/", 2)
            content, start = hub.repos[repo][commit][file], 0
            headers = {"Accept-Ranges": "bytes", "ETag": f'"{hashlib.sha256(content).hexdigest()}"'}
            wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
            if wanted and not hub.ignores_ranges:
                start = int(wanted[1])
                headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            cut = self.command == "GET" and hub.cuts > 0
            hub.cuts -= cut
            self.answer(206 if start else 200, headers, content[start:], cut=cut)

        def refuse(self, status, code, message, headers=()):
            self.answer(status, {**dict(headers), "X-Error-Code": code, "X-Error-Message": message})

        def answer(self, status, headers, content=b"", cut=False):
            self.send_response(status)
            for name, value in {**headers, "Content-Length": len(content)}.items():
                self.send_header(name, str(value))
            self.end_headers()
            if self.command == "GET" and hub.stops_at is not None and len(content) > hub.stops_at:
                self.wfile.write(content[: hub.stops_at])
                hub.has_stopped.set()
                hub.goes_on.wait(60)
                content = content[hub.stops_at :]
            if self.command != "HEAD":
                self.wfile.write(content[: len(content) // 2] if cut else content)
            if cut:
                self.wfile.flush()
                self.close_connection = True

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    hub.store = hub.url.replace("127.0.0.1", "localhost")
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    return server
