# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A stand-in for AWX on loopback: enough of its interface for the modules of awx.awx, and a record of every write."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest

TOKEN = "a-token"
PREFIX = "/api/v2/"
TYPES = {
    "job_templates": "job_template",
    "workflow_job_templates": "workflow_job_template",
    "workflow_approval_templates": "workflow_approval",
    "projects": "project",
}
UNIFIED = tuple(TYPES)
# AWX keeps what it knows of an object and ignores the rest.
FIELDS = {"workflow_approval_templates": ("name", "description", "timeout")}
REVISION = "5f2c"
FETCHED = {"status": "successful", "finished": "now", "failed": False, "scm_revision": REVISION}
Item = dict[str, Any]


def known(kind: str, body: Item) -> Item:
    """What AWX takes of it."""
    return {key: value for key, value in body.items() if key in FIELDS.get(kind, tuple(body))}


@dataclass(frozen=True)
class Written:
    """One request that was to change something."""

    method: str
    path: str
    body: Item


@dataclass
class Awx:
    """Objects by kind and number, their associations, and every write in its order."""

    objects: dict[str, dict[int, Item]] = field(default_factory=dict)
    associations: dict[str, list[int]] = field(default_factory=dict)
    surveys: dict[str, Item] = field(default_factory=dict)
    written: list[Written] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    url: str = ""

    def add(self, kind: str, body: Item) -> Item:
        """Create an object, with what AWX adds to it."""
        number = next(self.numbers)
        url = f"{PREFIX}{kind}/{number}/"
        item = {
            **known(kind, body),
            "id": number,
            "url": url,
            "type": TYPES.get(kind, kind.rstrip("s")),
            "summary_fields": {},
        }
        item["related"] = {"survey_spec": f"{url}survey_spec/", "update": f"{url}update/"}
        if kind == "projects":
            item["scm_revision"] = REVISION
        self.objects.setdefault(kind, {})[number] = item
        return item

    def find(self, kind: str, wanted: Item) -> list[Item]:
        """Objects of a kind that have these values; unified ones are of several kinds."""
        kinds = UNIFIED if kind == "unified_job_templates" else (kind,)
        items = [item for one in kinds for item in self.objects.get(one, {}).values()]
        return [item for item in items if all(str(item.get(key)) == str(value) for key, value in wanted.items())]

    def one(self, kind: str, name: str) -> Item:
        """The only object of that name."""
        (found,) = self.find(kind, {"identifier" if kind.endswith("_nodes") else "name": name})
        return found

    def associated(self, item: Item, what: str) -> list[Item]:
        """Objects that are associated with one."""
        numbers = self.associations.get(f"{item['url']}{what}/", [])
        return [item for one in self.objects.values() for number, item in one.items() if number in numbers]

    def answer(self, method: str, path: str, query: Item, body: Item) -> tuple[int, Item]:
        """Status and body of one request."""
        if method != "GET":
            self.written.append(Written(method, path, body))
        words = path.removeprefix(PREFIX).strip("/").split("/")
        if len(words) == 1:
            return self._of_kind(method, words[0], query, body)
        item = self.objects.get(words[0], {}).get(int(words[1]))
        if item is None:
            return 404, {}
        if len(words) == 2:
            item.update(known(words[0], body))
            return 200, item
        return self._below(method, item, path, words[2], body)

    def _of_kind(self, method: str, kind: str, query: Item, body: Item) -> tuple[int, Item]:
        if method == "POST" and kind == "projects":
            # A new project is fetched at once, and its own record speaks of that while it goes on.
            project, update = self.add(kind, body), self.add("project_updates", FETCHED)
            return 201, {**project, "summary_fields": {"current_update": {"id": update["id"]}}}
        if method == "POST":
            return 201, self.add(kind, body)
        found = self.find(kind, query)
        return 200, {"count": len(found), "next": None, "previous": None, "results": found}

    def _below(self, method: str, item: Item, path: str, what: str, body: Item) -> tuple[int, Item]:
        if what == "survey_spec":
            if method == "POST":
                self.surveys[path] = body
            return 200, self.surveys.get(path, {})
        if what == "update":
            return 202, self.add("project_updates", FETCHED)
        if what == "create_approval_template":
            template = self.add("workflow_approval_templates", body)
            item["unified_job_template"] = template["id"]
            item["related"]["unified_job_template"] = template["url"]
            return 201, template
        return self._association(method, path, body)

    def _association(self, method: str, path: str, body: Item) -> tuple[int, Item]:
        numbers = self.associations.setdefault(path, [])
        if method == "POST":
            (numbers.remove if body.get("disassociate") else numbers.append)(body["id"])
            return 204, {}
        return 200, {"count": len(numbers), "next": None, "results": [{"id": number} for number in numbers]}


def handler_for(awx: Awx) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _serve(self) -> None:
            parts = urlsplit(self.path)
            raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                awx.refused.append(self.path)
                return self._send(401, {})
            body = json.loads(raw) if raw and self.command != "GET" else {}
            return self._send(*awx.answer(self.command, parts.path, dict(parse_qsl(parts.query)), body))

        def _send(self, status: int, body: Item) -> None:
            data = b"" if status == 204 else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("X-API-Product-Name", "AWX")
            self.send_header("X-API-Product-Version", "24.6.1")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PATCH = do_DELETE = _serve

        def log_message(self, *_arguments: object) -> None:
            """Say nothing."""

    return Handler


@pytest.fixture
def awx() -> Iterator[Awx]:
    """An AWX that has an organization, an inventory and a credential, and nothing of ours."""
    found = Awx()
    for kind, name in (("organizations", "Default"), ("inventories", "hypervisors"), ("credentials", "hypervisors")):
        found.add(kind, {"name": name})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler_for(found)) as server:
        found.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        yield found
        server.shutdown()
        thread.join()


@pytest.fixture(scope="session")
def collections(repository: Path) -> Path:
    """Where awx.awx is; fetched when it is not there yet."""
    folder = repository / "build" / "awx"
    if not (folder / "ansible_collections/awx/awx/MANIFEST.json").is_file():
        subprocess.run([sys.executable, repository / "tools/fetch-awx", folder], check=True)
    return folder


class Configure:
    """Runs the real playbook with the real modules."""

    def __init__(self, repository: Path, collections: Path, home: Path, awx: Awx) -> None:
        self.repository = repository
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("ANSIBLE_", "CONTROLLER_"))}
        self.environment = kept | {
            "ANSIBLE_COLLECTIONS_PATH": str(collections),
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_LOCALHOST_WARNING": "false",
            "ANSIBLE_INVENTORY_UNPARSED_WARNING": "false",
            "CONTROLLER_HOST": awx.url,
            "CONTROLLER_OAUTH_TOKEN": TOKEN,
            # The modules look for a configuration here, and Ansible for its own.
            "HOME": str(home),
        }

    def run(self, *options: str, image: str = "registry.example.net/holdfast:1") -> subprocess.CompletedProcess[str]:
        words = [str(Path(sys.executable).with_name("ansible-playbook")), "awx/configure.yml"]
        words += ["-e", f"ansible_python_interpreter={sys.executable}"]
        words += ["-e", f"awx_execution_environment_image={image}", *options]
        return subprocess.run(
            words, cwd=self.repository, env=self.environment, capture_output=True, text=True, check=False
        )

    def succeed(self, *options: str) -> str:
        done = self.run(*options)
        assert done.returncode == 0, f"{done.stdout}{done.stderr}"
        return done.stdout


@pytest.fixture
def configure(repository: Path, collections: Path, tmp_path: Path, awx: Awx) -> Configure:
    return Configure(repository, collections, tmp_path, awx)
