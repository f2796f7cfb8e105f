# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The doctor, against a real SSH server on loopback that speaks paramiko's server side, and real known_hosts files."""

from __future__ import annotations

import importlib.util
import json
import shlex
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import paramiko
import pytest
from rich.console import Console

from ansible_collections.holdfast.kvm.plugins.module_utils import _core as core
from ansible_collections.holdfast.kvm.plugins.module_utils._core import packing
from holdfast.cli import main
from holdfast.doctor import controller, host, login, rounds
from holdfast.doctor.controller import Copy
from holdfast.doctor.findings import Examination, Finding, Level, NoFurther, exit_code, good, problem, warning
from holdfast.doctor.route import KnownKey, parsed_known, parsed_route, proxy_command, target_of
from holdfast.doctor.sheet import sheet
from holdfast.progress import ExitCode

Reply = tuple[int, str, str]
PROBE = Path(host.__file__).with_name("files") / "probe"


class Server(paramiko.ServerInterface):
    """One connection: which keys and passwords it takes, and who answers commands."""

    def __init__(self, far: Far) -> None:
        self.far = far
        self.commands: dict[int, str] = {}
        self.began = threading.Condition()

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        self.far.tried.append(key.get_base64())
        known = username == self.far.user and key.get_base64() in self.far.keys
        return paramiko.AUTH_SUCCESSFUL if known else paramiko.AUTH_FAILED

    def check_auth_password(self, username: str, password: str) -> int:
        known = (username, password) == (self.far.user, self.far.password)
        return paramiko.AUTH_SUCCESSFUL if known else paramiko.AUTH_FAILED

    def get_allowed_auths(self, _username: str) -> str:
        return "publickey,password"

    def check_channel_request(self, _kind: str, _number: int) -> int:
        return paramiko.OPEN_SUCCEEDED

    def check_channel_exec_request(self, channel: paramiko.Channel, command: bytes) -> bool:
        threading.Thread(target=self._answer, args=(channel, command.decode()), daemon=True).start()
        return True

    def _answer(self, channel: paramiko.Channel, command: str) -> None:
        stdin = channel.makefile("rb").read().decode()
        self.far.asked.append(command)
        status, out, err = self.far.replies(command, stdin)
        channel.sendall(out.encode())
        channel.sendall_stderr(err.encode())
        channel.send_exit_status(status)
        channel.close()


@dataclass
class Far:
    """A host on loopback. ``replies`` answers a command with its exit status, output and errors."""

    key: paramiko.PKey = field(default_factory=lambda: paramiko.ECDSAKey.generate())
    user: str = "admin"
    password: str = ""
    keys: list[str] = field(default_factory=list)
    replies: Callable[[str, str], Reply] = lambda _command, _stdin: (0, "", "")
    tried: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    port: int = 0

    def serve(self, listener: socket.socket) -> None:
        while True:
            try:
                link, _ = listener.accept()
            except OSError:
                return
            transport = paramiko.Transport(link)
            transport.add_server_key(self.key)
            with suppress(paramiko.SSHException, EOFError, OSError):
                transport.start_server(server=Server(self))


def root_shell(command: str, stdin: str) -> Reply:
    """A host on which one logs in as root: the probe really runs, by this Python."""
    if command == "id -u":
        return 0, "0\n", ""
    done = subprocess.run(shlex.split(command), input=stdin, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def far() -> Iterator[Far]:
    host = Far(replies=root_shell)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        host.port = listener.getsockname()[1]
        thread = threading.Thread(target=host.serve, args=(listener,), daemon=True)
        thread.start()
        yield host
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(5)


@pytest.fixture
def near(tmp_path: Path, far: Far, monkeypatch: pytest.MonkeyPatch) -> Near:
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    return Near(tmp_path, far)


class Near:
    """The controller's side: a key, a known_hosts file, and the inventory's variables."""

    def __init__(self, folder: Path, far: Far) -> None:
        self.far = far
        self.known = folder / "known_hosts"
        self.known.touch()
        self.key_file = folder / "key"
        key = paramiko.ECDSAKey.generate()
        key.write_private_key_file(str(self.key_file))
        far.keys.append(key.get_base64())
        self.trust(far.key)
        self.variables: dict[str, Any] = {
            "ansible_host": "127.0.0.1",
            "ansible_port": far.port,
            "ansible_user": "admin",
            "ansible_ssh_private_key_file": str(self.key_file),
            "ansible_ssh_common_args": f"-F none -o UserKnownHostsFile={self.known} -o GlobalKnownHostsFile=none",
            "ansible_python_interpreter": sys.executable,
        }

    def trust(self, key: paramiko.PKey, marker: str = "") -> None:
        name = f"[127.0.0.1]:{self.far.port}"
        self.known.write_text(f"{marker} {name} {key.get_name()} {key.get_base64()}\n".lstrip())

    def examine(self) -> dict[str, Finding]:
        """Findings by subject."""
        return {finding.subject: finding for finding in host.examine("hv1", self.variables).findings}


def test_a_host_is_looked_at_to_the_end(near: Near) -> None:
    found = near.examine()
    assert [found[step].level for step in ("reach", "host key", "login", "root", "clock")] == [Level.GOOD] * 5
    assert found["login"].found == f"as admin with {near.key_file}"
    assert found["root"].found == "by login"
    assert found["Python"] == good("Python", ".".join(map(str, sys.version_info[:3])))
    assert found["agent"].level is Level.WARNING
    # What is installed here decides; that each was looked at is the point.
    assert {"kernel", "libvirt", "QEMU"} <= set(found)


def test_nobody_there(near: Near) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        near.variables["ansible_port"] = closed.getsockname()[1]
    found = near.examine()
    assert list(found) == ["reach"]
    assert "nothing listens" in found["reach"].found
    assert "ansible_port" in found["reach"].remedy


def test_a_name_that_nobody_knows(near: Near, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_arguments: object, **_more: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(login.socket, "create_connection", unknown)
    assert "is not known" in near.examine()["reach"].found


def test_something_that_is_no_ssh_server(near: Near, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(login, "CONNECT_LIMIT_S", 2.0)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near.variables["ansible_port"] = listener.getsockname()[1]

        def greet() -> None:
            link, _ = listener.accept()
            link.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            link.close()

        thread = threading.Thread(target=greet)
        thread.start()
        found = near.examine()
        thread.join()
    assert "does not speak SSH" in found["reach"].found


def test_an_unknown_host_key_ends_the_look_before_any_login(near: Near) -> None:
    near.known.write_text("")
    found = near.examine()
    assert found["host key"].level is Level.PROBLEM
    assert near.far.key.fingerprint in found["host key"].found
    assert f"ssh-keyscan -p {near.far.port} 127.0.0.1" in found["host key"].remedy
    assert "login" not in found
    assert near.far.tried == []


def test_an_unknown_host_key_is_a_warning_where_ssh_takes_any(near: Near) -> None:
    near.known.write_text("")
    near.variables["ansible_ssh_common_args"] += " -o StrictHostKeyChecking=no"
    found = near.examine()
    assert found["host key"].level is Level.WARNING
    assert found["login"].level is Level.GOOD


def test_another_host_key_is_said_and_nothing_is_sent_to_it(near: Near) -> None:
    near.trust(paramiko.ECDSAKey.generate())
    # Not even where ssh takes unknown keys: this one is known to be another.
    near.variables["ansible_ssh_common_args"] += " -o StrictHostKeyChecking=no"
    found = near.examine()
    assert "another key is on record" in found["host key"].found
    assert f"ssh-keygen -R '[127.0.0.1]:{near.far.port}'" in found["host key"].remedy
    assert near.far.tried == []


def test_a_revoked_key_is_no_key(near: Near) -> None:
    near.trust(near.far.key, marker="@revoked")
    assert "revoked" in near.examine()["host key"].found


def test_hashed_names_and_aliases_are_found(near: Near) -> None:
    near.known.write_text(f"hv1 {near.far.key.get_name()} {near.far.key.get_base64()}\n")
    subprocess.run(["ssh-keygen", "-q", "-H", "-f", near.known], check=True, capture_output=True)
    assert "hv1" not in near.known.read_text()
    near.variables["ansible_ssh_common_args"] += " -o HostKeyAlias=hv1"
    assert near.examine()["host key"].found.endswith("is on record as hv1")


def test_a_key_of_another_kind_on_record_does_not_hide_the_right_one(near: Near) -> None:
    key = near.far.key
    keys = [KnownKey("ssh-ed25519", "AAAA"), KnownKey(key.get_name(), key.get_base64())]
    route = parsed_route("hostname hv1\nport 22\nuser root\nstricthostkeychecking ask\n")
    found = login.judged_key(route, keys, key.get_name(), key.get_base64(), "SHA256:x")
    assert found.level is Level.GOOD
    with pytest.raises(NoFurther):
        login.judged_key(route, keys[:1], key.get_name(), key.get_base64(), "SHA256:x")


def test_a_key_that_the_host_does_not_take(near: Near) -> None:
    near.far.keys.clear()
    found = near.examine()
    assert found["login"].level is Level.PROBLEM
    assert str(near.key_file) in found["login"].found
    assert f"ssh-copy-id -p {near.far.port} admin@127.0.0.1" in found["login"].remedy
    assert near.far.asked == []


def test_a_key_with_a_passphrase_is_named(near: Near) -> None:
    paramiko.ECDSAKey.generate().write_private_key_file(str(near.key_file), password="secret")
    assert f"ssh-add {near.key_file}" in near.examine()["login"].found


@pytest.fixture
def agent(near: Near, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An agent that holds our key, whose file has a passphrase from then on."""
    place = near.key_file.with_name("agent")
    process = subprocess.Popen(["ssh-agent", "-D", "-a", place], stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 10
        while not place.exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        monkeypatch.setenv("SSH_AUTH_SOCK", str(place))
        subprocess.run(["ssh-add", "-q", near.key_file], check=True, stdin=subprocess.DEVNULL)
        key = paramiko.ECDSAKey.from_private_key_file(str(near.key_file))
        key.write_private_key_file(str(near.key_file), password="secret")
        near.key_file.with_name("key.pub").write_text(f"{key.get_name()} {key.get_base64()} ours\n")
        yield
    finally:
        process.terminate()
        process.wait(10)


@pytest.mark.usefixtures("agent")
def test_the_agents_keys_are_tried_first(near: Near) -> None:
    assert near.examine()["login"].found.startswith("as admin with the agent's key SHA256:")


@pytest.mark.usefixtures("agent")
def test_with_identities_only_the_agent_signs_for_a_file_with_a_passphrase(near: Near) -> None:
    near.variables["ansible_ssh_common_args"] += " -o IdentitiesOnly=yes"
    assert near.examine()["login"].found == f"as admin with {near.key_file}"


def test_a_file_that_is_no_key_is_said(near: Near) -> None:
    near.key_file.write_text("no key at all")
    assert f"{near.key_file} cannot be used here" in near.examine()["login"].found


def test_a_password_is_used_when_the_inventory_has_one(near: Near) -> None:
    near.far.keys.clear()
    near.far.password = near.variables["ansible_password"] = "correct horse"
    assert near.examine()["login"].found == "as admin with the inventory's password"


def sudo(password: str = "") -> Callable[[str, str], Reply]:
    """A host on which ``admin`` becomes root by sudo, with this password or without one."""

    def reply(command: str, stdin: str) -> Reply:
        if command == "id -u":
            return 0, "1000\n", ""
        prefix = "sudo -S -p '' " if password else "sudo -n "
        if not command.startswith(prefix):
            return 1, "", "sudo: a password is required\n"
        first, _, rest = stdin.partition("\n") if password else ("", "", stdin)
        if first != password:
            return 1, "", "sudo: 1 incorrect password attempt\n"
        return root_shell(command.removeprefix(prefix), rest)

    return reply


def test_become_without_a_password(near: Near) -> None:
    near.far.replies = sudo()
    found = near.examine()
    assert found["root"] == good("root", "by sudo")
    assert "kernel" in found


def test_become_with_a_password_that_is_not_on_the_command_line(near: Near) -> None:
    near.far.replies = sudo("open sesame")
    assert "a password is required" in near.examine()["root"].found
    near.variables["ansible_become_pass"] = "open sesame"
    found = near.examine()
    assert found["root"].level is Level.GOOD
    assert "kernel" in found
    assert not [command for command in near.far.asked if "sesame" in command]


@pytest.mark.parametrize(
    ("variables", "words"),
    [({"ansible_become": False}, "does not become root at all"), ({"ansible_become_method": "doas"}, "by doas")],
)
def test_a_login_that_cannot_become_root(near: Near, variables: dict[str, Any], words: str) -> None:
    near.far.replies = sudo()
    near.variables |= variables
    assert words in near.examine()["root"].found


def test_a_host_without_python(near: Near) -> None:
    near.far.replies = lambda command, _stdin: (
        (0, "0\n", "") if command == "id -u" else (127, "", "sh: 1: /usr/bin/python3: not found\n")
    )
    found = near.examine()
    assert "not found" in found["Python"].found
    assert "install python3" in found["Python"].remedy


# What the facts mean


FACTS: dict[str, Any] = {
    "time": 1000.0,
    "python": [3, 13, 5],
    "magic": importlib.util.MAGIC_NUMBER.hex(),
    "uid": 0,
    "kernel": "6.12.107",
    "libvirt": {"binding": True, "version": [11, 3, 0]},
    "qemu": "QEMU emulator version 10.0.2 (Debian 1:10.0.2)\n",
    "agent": packing.version_of(packing.core_sources(core)),
}


def judged(asked_at: float = 999.9, **facts: Any) -> dict[str, Finding]:
    seen = host.Seen({**FACTS, **facts}, asked_at, asked_at + 0.2)
    return {finding.subject: finding for finding in host.judged(seen)}


def test_a_host_that_has_everything() -> None:
    assert {finding.level for finding in judged().values()} == {Level.GOOD}


@pytest.mark.parametrize(
    ("facts", "subject", "level", "words"),
    [
        ({"python": [3, 7, 3]}, "Python", Level.PROBLEM, "3.7.3 is too old"),
        ({"libvirt": {"binding": False, "error": "No module"}}, "libvirt", Level.WARNING, "no libvirt binding"),
        ({"libvirt": {"binding": True, "error": "refused"}}, "libvirt", Level.PROBLEM, "does not answer: refused"),
        ({"libvirt": {"binding": True, "version": [7, 0, 0]}}, "libvirt", Level.PROBLEM, "7.0.0 is too old"),
        ({"qemu": ""}, "QEMU", Level.PROBLEM, "no QEMU"),
        ({"qemu": "QEMU emulator version 5.2.0"}, "QEMU", Level.PROBLEM, "5.2.0 is too old"),
        ({"agent": ""}, "agent", Level.WARNING, "not prepared yet"),
        ({"agent": "0123456789ab"}, "agent", Level.WARNING, "it is 0123456789ab"),
        ({"time": 1060.0}, "clock", Level.WARNING, "60 s ahead of ours"),
        ({"time": 940.0}, "clock", Level.WARNING, "60 s behind ours"),
    ],
)
def test_what_is_wrong_is_said_with_a_remedy(facts: dict[str, Any], subject: str, level: Level, words: str) -> None:
    finding = judged(**facts)[subject]
    assert finding.level is level
    assert words in finding.found
    assert finding.remedy


def test_the_agent_is_compared_for_the_hosts_python() -> None:
    """The same sources packed by another Python have another version: a controller's own would always differ."""
    other = b"\x01\x02\r\n"
    version = packing.version_of(packing.core_sources(core), other)
    assert version != FACTS["agent"]
    assert judged(magic=other.hex(), agent=version)["agent"].level is Level.GOOD


def test_a_slow_network_is_no_wrong_clock() -> None:
    seen = host.Seen(FACTS, 990.0, 1010.0)
    assert {finding.subject: finding for finding in host.judged(seen)}["clock"].level is Level.GOOD


def test_the_probe_reads_only_and_runs_isolated() -> None:
    before = time.time()
    done = subprocess.run(
        [sys.executable, "-I", "-"], input=PROBE.read_text(), capture_output=True, text=True, check=True
    )
    facts = json.loads(done.stdout)
    assert set(facts) == set(FACTS)
    assert before <= facts["time"] <= time.time()


# From the inventory to the way in


def test_older_names_of_variables_are_understood() -> None:
    target = target_of("hv1", {"ansible_ssh_host": "h", "ansible_ssh_user": {"__ansible_unsafe": "u"}})
    assert (target.address, target.user, target.python) == ("h", "u", "/usr/bin/python3")


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"ansible_connection": "local"}, "would jump away"),
        ({"ansible_connection": "community.libvirt.libvirt_qemu"}, "only ssh is looked at"),
        ({"ansible_host": "{{ address }}"}, "ansible_host of this host is a template"),
        ({"ansible_ssh_common_args": "-o 'x"}, "cannot be understood"),
    ],
)
def test_a_host_that_is_not_reached_by_ssh(variables: dict[str, Any], words: str) -> None:
    with pytest.raises(NoFurther, match=words):
        target_of("hv1", variables)


def test_what_is_in_a_vault_stays_there() -> None:
    assert target_of("hv1", {"ansible_become_password": {"__ansible_vault": "$ANSIBLE_VAULT"}}).become_password == ""


def test_a_jump_host_is_a_proxy() -> None:
    route = parsed_route("hostname hv1\nport 2222\nuser root\nproxyjump admin@gate:22022\n")
    assert proxy_command(route) == "ssh -W hv1:2222 -p 22022 admin@gate"
    assert route.known_as == "[hv1]:2222"


def test_markers_of_known_hosts_are_kept() -> None:
    printed = "# Host hv1 found: line 3\n@cert-authority *.lab ssh-rsa AAAA ca\n|1|x|y ssh-ed25519 BBBB\nhv1 broken\n"
    assert parsed_known(printed) == [KnownKey("ssh-rsa", "AAAA", "@cert-authority"), KnownKey("ssh-ed25519", "BBBB")]


# This machine


def collection(root: Path, version: str) -> Copy:
    path = root / "ansible_collections" / "holdfast" / "kvm"
    path.mkdir(parents=True)
    (path / "MANIFEST.json").write_text(json.dumps({"collection_info": {"version": version}}))
    return Copy(path)


def test_the_copy_of_the_collection_that_counts(tmp_path: Path) -> None:
    own, other = collection(tmp_path / "own", "1.0.0"), collection(tmp_path / "other", "0.9.0")
    assert controller.judged_copies(own, own, own).level is Level.GOOD
    assert controller.judged_copies(own, other, own).level is Level.PROBLEM
    assert controller.judged_copies(own, None, own).level is Level.PROBLEM
    shadowed = controller.judged_copies(own, own, other)
    assert shadowed.level is Level.WARNING
    assert "version 0.9.0" in shadowed.found
    assert controller.judged_copies(own, own, None).level is Level.WARNING
    assert [one.found for one in controller.unused_copies([own], [own, other])] == [
        f"a further copy is there, unused: {other}"
    ]


def test_ansible_says_which_copy_it_uses(tmp_path: Path) -> None:
    """A copy that a path names first shadows ours, whatever is in it."""
    ours = controller.copy_used({"ANSIBLE_COLLECTIONS_PATH": str(controller.collections_root())})
    assert ours is not None
    assert ours.version
    own = collection(tmp_path, "0.0.1")
    modules = own.path / "plugins" / "modules"
    modules.mkdir(parents=True)
    (modules / "host_info.py").write_bytes((ours.path / "plugins/modules/host_info.py").read_bytes())
    assert controller.copy_used({"ANSIBLE_COLLECTIONS_PATH": str(tmp_path)}) == own


def test_keys_of_this_machine(tmp_path: Path) -> None:
    assert controller.judged_keys(tmp_path, 0)[0].level is Level.WARNING
    assert controller.judged_keys(tmp_path, 2)[0].found == "2 in the agent"
    key = tmp_path / "id_ed25519"
    key.touch(mode=0o644)
    key.chmod(0o644)
    first, second = controller.judged_keys(tmp_path, 0)
    assert (first.level, second.level) == (Level.PROBLEM, Level.GOOD)
    assert first.remedy == f"chmod 600 {key}"


# The whole


def test_the_worst_finding_counts() -> None:
    fine, odd, bad = good("a", "b"), warning("a", "b", "c"), problem("a", "b", "c")
    assert Examination("hv1", (fine, odd)).level is Level.WARNING
    assert exit_code([Examination("hv1", (fine, odd))]) is ExitCode.DONE
    assert exit_code([Examination("hv1", (fine,)), Examination("hv2", (odd, bad, fine))]) is ExitCode.HOST_FAILED


def test_the_sheet_shows_remedies_and_obeys_nothing() -> None:
    hostile = "[red]x[/nope]\x1b[31m\u202e"
    console = Console(width=100, force_terminal=False)
    with console.capture() as capture:
        console.print(sheet([Examination(hostile, (problem("reach", hostile, "go there"), good("ssh", "ok")))]))
    text = capture.get()
    assert "go there" in text
    assert "1 problem" in text
    assert "\x1b" not in text
    assert "\u202e" not in text


def test_the_command_looks_at_every_host_of_the_inventory(
    near: Near, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(rounds.controller, "examine", lambda _environment: Examination("this machine", ()))
    inventory = tmp_path / "hosts.json"
    lost = {"ansible_host": "127.0.0.1", "ansible_port": 1}
    inventory.write_text(json.dumps({"hypervisors": {"hosts": {"hv1": near.variables, "hv2": lost}}}))
    assert main(["doctor", "-i", str(inventory), "--json"]) == ExitCode.HOST_FAILED
    document = json.loads(capsys.readouterr().out)
    assert [one["name"] for one in document["examined"]] == ["this machine", "hv1", "hv2"]
    subjects = [finding["subject"] for finding in document["examined"][1]["findings"]]
    assert subjects[:4] == ["reach", "host key", "login", "root"]
    assert document["examined"][2]["level"] == "problem"


def test_a_missing_inventory_is_one_clear_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "-i", str(tmp_path / "nope.yml")]) == ExitCode.HOST_FAILED
    assert "nope.yml does not exist" in capsys.readouterr().err
