"""A local stand-in for the Hugging Face Hub: as much of its API as pushing and fetching of files takes."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import yaml
from aiohttp import web

SHA = "5" * 40
LARGE = (".safetensors",)


@dataclass
class Repository:
    """Files of one repository, and how many commits made it."""

    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    commits: list[str] = field(default_factory=list)


@dataclass
class Hub:
    """`token` may read all and write to `owner`'s repositories; others are refused as the Hub refuses them."""

    token: str
    owner: str
    repositories: dict[str, Repository] = field(default_factory=dict)
    """`models/owner/name` or `datasets/owner/name`"""
    large: dict[str, bytes] = field(default_factory=dict)
    url: str = ""
    asked: list[str] = field(default_factory=list)
    fail: int = 0
    """A status to answer to every commit."""

    def app(self) -> web.Application:
        app = web.Application(client_max_size=64 * 1024 * 1024, middlewares=[self._known])
        app.router.add_post("/api/repos/create", self._create)
        app.router.add_post("/api/validate-yaml", self._validate)
        for suffix in ("", "/revision/{revision}"):
            app.router.add_get("/api/{kind}/{owner}/{name}" + suffix, self._info)
        app.router.add_get("/api/{kind}/{owner}/{name}/tree/{revision}", self._tree)
        app.router.add_post("/api/{kind}/{owner}/{name}/preupload/{revision}", self._modes)
        app.router.add_post("/api/{kind}/{owner}/{name}/commit/{revision}", self._commit)
        for prefix in ("", "/{kind:datasets}"):
            app.router.add_post(prefix + "/{owner}/{name}.git/info/lfs/objects/batch", self._batch)
            app.router.add_get(prefix + "/{owner}/{name}/resolve/{revision}/{path:.+}", self._file)
        app.router.add_put("/large/{oid}", self._large)
        return app

    @web.middleware
    async def _known(self, request: web.Request, handler: Any) -> web.StreamResponse:
        self.asked.append(f"{request.method} {request.path}")
        given = request.headers.get("Authorization")
        if not request.path.startswith("/large/") and given is not None and given != f"Bearer {self.token}":
            return web.json_response(
                {"error": "Invalid credentials in Authorization header"},
                status=401,
                headers={"X-Error-Message": "Invalid credentials in Authorization header"},
            )
        answer: web.StreamResponse = await handler(request)
        return answer

    def _may_write(self, request: web.Request, owner: str) -> bool:
        return request.headers.get("Authorization") == f"Bearer {self.token}" and owner == self.owner

    def _of(self, request: web.Request) -> Repository | None:
        kind = request.match_info.get("kind", "models")
        return self.repositories.get(f"{kind}/{request.match_info['owner']}/{request.match_info['name']}")

    async def _create(self, request: web.Request) -> web.Response:
        body = await request.json()
        if not self._may_write(request, body["organization"]):
            return _refused()
        key = f"{body['organization']}/{body['name']}"
        self.repositories[f"{body.get('type', 'model')}s/{key}"] = Repository(body.get("visibility") == "private")
        return web.json_response({"url": f"{self.url}/{key}"})

    async def _validate(self, request: web.Request) -> web.Response:
        content = (await request.json())["content"]
        _, front, _ = content.split("---\n", 2)
        assert isinstance(yaml.safe_load(front), dict)
        return web.json_response({"errors": [], "warnings": []})

    async def _info(self, request: web.Request) -> web.Response:
        found = self._of(request)
        if found is None:
            return _missing()
        name = f"{request.match_info['owner']}/{request.match_info['name']}"
        siblings = [{"rfilename": path} for path in found.files]
        return web.json_response({"id": name, "private": found.private, "sha": SHA, "siblings": siblings})

    async def _tree(self, request: web.Request) -> web.Response:
        found = self._of(request)
        if found is None:
            return _missing()
        return web.json_response(
            [
                {"type": "file", "path": path, "size": len(body), "oid": _blob(body)}
                for path, body in found.files.items()
            ]
        )

    async def _modes(self, request: web.Request) -> web.Response:
        if not self._may_write(request, request.match_info["owner"]):
            return _refused()
        files = (await request.json())["files"]
        modes = [
            {
                "path": one["path"],
                "uploadMode": "lfs" if one["path"].endswith(LARGE) else "regular",
                "shouldIgnore": False,
            }
            for one in files
        ]
        return web.json_response({"files": modes})

    async def _batch(self, request: web.Request) -> web.Response:
        objects = (await request.json())["objects"]
        actions = [
            {**one, "authenticated": True, "actions": {"upload": {"href": f"{self.url}/large/{one['oid']}"}}}
            for one in objects
        ]
        return web.json_response({"transfer": "basic", "objects": actions})

    async def _large(self, request: web.Request) -> web.Response:
        body = await request.read()
        assert hashlib.sha256(body).hexdigest() == request.match_info["oid"]
        self.large[request.match_info["oid"]] = body
        return web.Response()

    async def _commit(self, request: web.Request) -> web.Response:
        if self.fail:
            return web.json_response({"error": "no"}, status=self.fail)
        found = self._of(request)
        if found is None or not self._may_write(request, request.match_info["owner"]):
            return _refused()
        for line in (await request.read()).splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header":
                found.commits.append(value["summary"])
            elif item["key"] == "lfsFile":
                found.files[value["path"]] = self.large[value["oid"]]
            else:
                found.files[value["path"]] = base64.b64decode(value["content"])
        place = request.path.removeprefix("/api/").removeprefix("models/").rpartition("/")[0]
        return web.json_response({"commitUrl": f"{self.url}/{place}/{SHA}", "commitOid": SHA})

    async def _file(self, request: web.Request) -> web.Response:
        found = self._of(request)
        body = None if found is None else found.files.get(request.match_info["path"])
        if body is None:
            return _missing()
        return web.Response(body=body, headers={"ETag": f'"{_blob(body)}"', "X-Repo-Commit": SHA})


def _blob(body: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()


def _missing() -> web.Response:
    return web.json_response({"error": "Repository not found"}, status=404, headers={"X-Error-Code": "RepoNotFound"})


def _refused() -> web.Response:
    return web.json_response({"error": "You don't have the rights to write here"}, status=403)


@asynccontextmanager
async def hub(token: str = "hf_right", owner: str = "team") -> AsyncIterator[Hub]:
    """The stand-in on a free port."""
    standing = Hub(token, owner)
    runner = web.AppRunner(standing.app())
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    standing.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield standing
    finally:
        await runner.cleanup()
