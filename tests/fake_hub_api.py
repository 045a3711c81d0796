"""What the fake Hub answers to which path: the API, the redirects to the CDN, and who may read what.

The answers follow what the real Hub sends, as seen through the client's own source and public threads.
"""

from __future__ import annotations

import hmac
import re
import sys
import time
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote, urlencode

from tests.fake_hub_wire import RefusalError, Server, Wire

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.fake_hub import FakeHub, File, Repo

CDN_HOST = "127.0.0.2" if sys.platform == "linux" else "127.0.0.1"  # elsewhere another port is all there is
SECONDS_SIGNED = 3600
DATE = "2026-01-01T00:00:00.000Z"


def serve(hub: FakeHub) -> list[Server]:
    """The two origins, hub and CDN, running."""
    return [Server(hub, "hub", "127.0.0.1", Api), Server(hub, "cdn", CDN_HOST, Api)]


class Api(Wire):
    """Both origins; which paths each has is in `ROUTES`."""

    def route(self, path: str) -> None:
        for pattern, answer in ROUTES[self.server.origin]:
            if found := re.fullmatch(pattern, path):
                answer(self, *(group and unquote(group) for group in found.groups()))
                return
        raise RefusalError(404, message="Sorry, we can't find the page you are looking for.")

    def _asked(self, key: str) -> str:
        return self.query.get(key, [""])[0]

    # ---- who may read what

    def _repo(self, repo_id: str, *, content: bool = False) -> Repo:
        """The repository, if this request may see it (and its files, if `content`)."""
        hub, token = self.server.hub, (self.asked.auth or "").removeprefix("Bearer ")
        if token and token not in hub.tokens:
            raise RefusalError(401, message="Invalid credentials in Authorization header")
        if repo_id in hub.renamed:
            raise RefusalError(307, Location=self.path.replace(quote(repo_id), quote(hub.renamed[repo_id]), 1))
        repo = hub.repos.get(repo_id)
        if repo is None or (repo.private and token not in repo.allowed_tokens):
            if token:
                raise RefusalError(404, "RepoNotFound", "Repository not found")
            raise RefusalError(401, "RepoNotFound", "Invalid username or password.")
        if content and repo.gated and token not in repo.allowed_tokens:
            raise RefusalError(403 if token else 401, "GatedRepo", f"Access to model {repo_id} is restricted.")
        return repo

    def _commit(self, repo: Repo, revision: str) -> str:
        """The commit that a branch, a tag, or the beginning of a sha means."""
        name = repo.branches.get(revision) or repo.git_tags.get(revision) or revision
        found = [sha for sha in repo.commits if len(name) >= 7 and sha.startswith(name)]
        if not found:
            raise RefusalError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return found[0]

    # ---- the API

    def whoami(self) -> None:
        if (self.asked.auth or "").removeprefix("Bearer ") not in self.server.hub.tokens:
            raise RefusalError(401, message="Invalid credentials in Authorization header")
        self.answer_json({"name": "reader", "type": "user", "auth": {"type": "access_token"}})

    def agent_harnesses(self) -> None:
        self.answer_json({"standardEnvVars": [], "harnesses": {}})

    def list_models(self) -> None:
        hub, author, words = self.server.hub, self._asked("author").lower(), self._asked("search").lower().split()
        tags = {*self.query.get("filter", []), *self.query.get("pipeline_tag", [])}
        found = [
            repo
            for repo in sorted(hub.repos.values(), key=lambda repo: (-repo.downloads, repo.id))
            if not repo.private
            and author in ("", repo.id.split("/")[0].lower())
            and all(word in repo.id.lower() for word in words)
            and tags <= set(repo.tags)
        ]
        begin = int(self._asked("cursor") or 0)
        end = begin + min(int(self._asked("limit") or hub.page), hub.page)
        following = urlencode({**self.query, "cursor": end}, doseq=True)
        link = {"Link": f'<{hub.url}/api/models?{following}>; rel="next"'} if end < len(found) else {}
        full = "full" in self.query or "siblings" in self.query.get("expand", [])
        self.answer_json([self._describe(repo, "main", full) for repo in found[begin:end]], link)

    def model(self, repo_id: str, revision: str = "main") -> None:
        self.answer_json(self._describe(self._repo(repo_id), revision, True))

    def _describe(self, repo: Repo, revision: str, full: bool) -> dict[str, Any]:
        sha = self._commit(repo, revision)
        siblings = [{"rfilename": path, **self._blob(file)} for path, file in repo.commits[sha].items()]
        return {
            "_id": "0" * 24, "id": repo.id, "modelId": repo.id, "author": repo.id.split("/")[0], "sha": sha,
            "private": repo.private, "gated": repo.gated, "disabled": False, "downloads": repo.downloads, "likes": 0,
            "tags": list(repo.tags), "createdAt": DATE, "lastModified": DATE,
            **({"siblings": siblings} if full else {}),
        }  # fmt: skip

    def _blob(self, file: File) -> dict[str, Any]:
        if "blobs" not in self.query:
            return {}
        lfs = {"lfs": {"sha256": file.etag, "size": file.size, "pointerSize": 134}} if file.lfs else {}
        return {"size": file.size, "blobId": file.blob_id, **lfs}

    def refs(self, repo_id: str) -> None:
        repo = self._repo(repo_id)

        def named(place: str, shas: dict[str, str]) -> list[dict[str, str]]:
            return [{"name": name, "ref": f"refs/{place}/{name}", "targetCommit": sha} for name, sha in shas.items()]

        pulls = {name: sha for name, sha in repo.branches.items() if name.startswith("refs/pr/")}
        branches = {name: sha for name, sha in repo.branches.items() if name not in pulls}
        self.answer_json({
            "branches": named("heads", branches), "tags": named("tags", repo.git_tags), "converts": [],
            "pullRequests": [{"name": ref.rpartition("/")[2], "ref": ref, "targetCommit": sha} for ref, sha in pulls.items()],
        })  # fmt: skip

    def discussions(self, repo_id: str) -> None:
        """Newest first, a page at a time. A discussion has a number of its own, and no branch."""
        repo, kind, author = self._repo(repo_id), self._asked("type"), self._asked("author")
        status = self._asked("status")
        found = [
            (number, thread)
            for number, thread in sorted(repo.threads.items(), reverse=True)
            if kind in ("", "all", "pull_request" if thread.pull else "discussion")
            and author in ("", thread.author)
            and status in ("", "all", "open" if thread.status in ("open", "draft") else "closed")
        ]
        start = int(self._asked("p") or 0) * self.server.hub.page
        page = [
            {
                "num": number, "title": thread.title, "status": thread.status, "isPullRequest": thread.pull,
                "author": {"name": thread.author, "type": "user"}, "repo": {"name": repo.id, "type": "model"},
                "createdAt": DATE, "numComments": 1, "pinned": False,
            }
            for number, thread in found[start : start + self.server.hub.page]
        ]  # fmt: skip
        self.answer_json({"discussions": page, "count": len(found), "start": start, "numClosedDiscussions": 0})

    def tree(self, repo_id: str, revision: str, folder: str | None) -> None:
        repo, prefix = self._repo(repo_id), f"{folder}/" if folder else ""
        recursive = self._asked("recursive").lower() == "true"
        entries: dict[str, dict[str, Any]] = {}
        for path, file in repo.commits[self._commit(repo, revision)].items():
            if not path.startswith(prefix):
                continue
            child, *deeper = path.removeprefix(prefix).split("/")
            if deeper:
                entries.setdefault(prefix + child, {"type": "directory", "path": prefix + child, "oid": "0" * 40})
            if recursive or not deeper:
                entries[path] = file.describe(path)
        if folder and not entries:
            raise RefusalError(404, "EntryNotFound", f"{folder} does not exist on {revision!r}")
        self.answer_json(list(entries.values()))

    def paths_info(self, repo_id: str, revision: str) -> None:
        repo = self._repo(repo_id)
        files = repo.commits[self._commit(repo, revision)]
        self.answer_json([files[path].describe(path) for path in self.form.get("paths", []) if path in files])

    # ---- files

    def resolve(self, repo_id: str, revision: str, path: str, *, cached: bool = False) -> None:
        """A large file: a redirect to the CDN. A small one: a redirect to its pinned URL, then the file itself."""
        repo = self._repo(repo_id, content=True)
        sha = self._commit(repo, revision)
        headers = {"X-Repo-Commit": sha, "RateLimit": '"resolvers";r=2999;t=100', "Accept-Ranges": "bytes"}
        file = repo.commits[sha].get(path)
        if file is None:
            raise RefusalError(404, "EntryNotFound", "Entry not found", X_Repo_Commit=sha)
        if file.lfs:
            place = self._signed_url(file.etag, PurePosixPath(path).name)
            headers |= {"X-Linked-Size": str(file.size), "X-Linked-ETag": f'"{file.etag}"', "Location": place}
            self.answer(302, b"", self.spoil(headers))
        elif not cached:
            place = f"/api/resolve-cache/models/{repo.id}/{sha}/{quote(path)}?etag=%22{file.etag}%22"
            self.answer(307, b"", self.spoil(headers | {"ETag": f'"{file.etag}"', "Location": place}))
        else:
            self.answer_file(file, headers | {"ETag": f'"{file.etag}"'}, text=True)

    def resolve_cache(self, repo_id: str, sha: str, path: str) -> None:
        self.resolve(repo_id, sha, path, cached=True)

    def _signed_url(self, etag: str, name: str) -> str:
        expires = int(time.time()) + SECONDS_SIGNED
        shown = quote(f'inline; filename="{name}"')
        signed = f"Expires={expires}&Signature={self._signature(etag, expires)}&Key-Pair-Id=K"
        return f"{self.server.hub.cdn_url}/xet-bridge/{etag}?response-content-disposition={shown}&{signed}"

    def _signature(self, etag: str, expires: int) -> str:
        return hmac.new(b"fake", f"{etag} {expires} {self.server.hub.generation}".encode(), "sha256").hexdigest()

    def signed_file(self, etag: str) -> None:
        expires = int(self._asked("Expires") or 0)
        if self._asked("Signature") != self._signature(etag, expires) or expires < time.time():
            raise RefusalError(403, message="Access denied", X_Cache="Error from cloudfront")
        if self.asked.auth:
            raise RefusalError(400, message="Only one auth mechanism allowed")
        file = self.server.hub.large_file(etag)
        if file is None:
            raise RefusalError(404, message="NoSuchKey")
        self.answer_file(file, {"ETag": f'"{etag}"', "Accept-Ranges": "bytes", "X-Cache": "Hit from cloudfront"})


ID = r"((?:[^/]+/)?[^/]+)"
ROUTES: dict[str, list[tuple[str, Callable[..., None]]]] = {
    "hub": [
        (r"/api/whoami-v2", Api.whoami),
        (r"/api/agent-harnesses", Api.agent_harnesses),
        (r"/api/models", Api.list_models),
        (rf"/api/models/{ID}/refs", Api.refs),
        (rf"/api/models/{ID}/discussions", Api.discussions),
        (rf"/api/models/{ID}/tree/([^/]+)(?:/(.+))?", Api.tree),
        (rf"/api/models/{ID}/paths-info/([^/]+)", Api.paths_info),
        (rf"/api/models/{ID}/revision/([^/]+)", Api.model),
        (rf"/api/models/{ID}", Api.model),
        (rf"/api/resolve-cache/models/{ID}/([0-9a-f]{{40}})/(.+)", Api.resolve_cache),
        (rf"/{ID}/resolve/([^/]+)/(.+)", Api.resolve),
    ],
    "cdn": [(r"/xet-bridge/([^/]+)", Api.signed_file)],
}
"""Which path each origin answers with what, first match first; groups are unquoted after the match."""
