# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a migration asks of libvirt, what it copies, who leaves, and what is remembered of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ansible_collections.holdfast.kvm.plugins.module_utils._core import (
    away,
    domain,
    evacuees,
    images,
    migration,
    policy,
)
from ansible_collections.holdfast.kvm.plugins.module_utils._core.errors import BadInput, HoldfastError, Refused
from ansible_collections.holdfast.kvm.plugins.module_utils._core.facts import Runs, VmFacts
from ansible_collections.holdfast.kvm.plugins.module_utils._core.images import Copy, CopyPlan, Image, Source
from ansible_collections.holdfast.kvm.plugins.module_utils._core.migration import (
    Encryption,
    Ends,
    PostCopy,
    Whereabouts,
    Wish,
)

WISH = Wish("db", "qemu+tls://hv2/system", "hv2")
NEW, OLD = (11, 1, 3), (10, 0, 2)
ENDS = Ends(NEW, NEW)
NOTHING = CopyPlan()
DISK = Source("vda", "/images/db.qcow2", "file", "qcow2", 1 << 30, base="/images/base/deb.qcow2", base_format="qcow2")

# What is asked of libvirt


def test_a_migration_is_encrypted_unless_switched_off_by_name() -> None:
    assert "TLS" in migration.flags(WISH, ENDS, NOTHING, persistent=True)
    assert migration.parameters(WISH, ENDS, NOTHING, "")["TLS_DESTINATION"] == "hv2"
    plain = Wish("db", "qemu+ssh://hv2/system", "hv2", encryption=Encryption.NONE)
    assert "TLS" not in migration.flags(plain, ENDS, NOTHING, persistent=True)
    assert "TLS_DESTINATION" not in migration.parameters(plain, ENDS, NOTHING, "")


def test_the_definition_goes_with_the_vm_and_a_transient_vm_has_none() -> None:
    ours = {"PERSIST_DEST", "UNDEFINE_SOURCE"}
    assert ours < set(migration.flags(WISH, ENDS, NOTHING, persistent=True))
    assert not ours & set(migration.flags(WISH, ENDS, NOTHING, persistent=False))


def test_a_migration_is_live_peer_to_peer_and_ends_at_an_io_error() -> None:
    wanted = {"LIVE", "PEER2PEER", "ABORT_ON_ERROR", "AUTO_CONVERGE"}
    assert wanted < set(migration.flags(WISH, ENDS, NOTHING, persistent=True))
    assert not {"UNSAFE", "TUNNELLED"} & set(migration.flags(WISH, ENDS, NOTHING, persistent=True))


@pytest.mark.parametrize(
    ("connections", "oldest", "postcopy", "parallel"),
    [
        (4, NEW, PostCopy.NEVER, True),
        (1, NEW, PostCopy.NEVER, False),
        (4, (8, 1, 0), PostCopy.NEVER, False),
        (4, OLD, PostCopy.NEVER, True),
        (4, OLD, PostCopy.IF_HOPELESS, False),
        (4, NEW, PostCopy.IF_HOPELESS, True),
    ],
)
def test_several_connections_where_both_ends_have_them(
    connections: int, oldest: tuple[int, int, int], postcopy: PostCopy, parallel: bool
) -> None:
    wish = Wish("db", "u", "hv2", connections=connections, postcopy=postcopy)
    ends = Ends(oldest, NEW)
    assert ("PARALLEL" in migration.flags(wish, ends, NOTHING, persistent=True)) is parallel
    assert ("PARALLEL_CONNECTIONS" in migration.parameters(wish, ends, NOTHING, "")) is parallel


def test_postcopy_only_for_who_asks_for_it() -> None:
    assert "POSTCOPY" not in migration.flags(WISH, ENDS, NOTHING, persistent=True)
    asked = Wish("db", "u", "hv2", postcopy=PostCopy.IF_HOPELESS)
    assert "POSTCOPY" in migration.flags(asked, ENDS, NOTHING, persistent=True)


@pytest.mark.parametrize(("copy", "flag"), [(Copy.TOP, "NON_SHARED_INC"), (Copy.ALL, "NON_SHARED_DISK")])
def test_disks_are_copied_by_name(copy: Copy, flag: str) -> None:
    plan = CopyPlan(copy, (Image("vda", "/i/db", "qcow2", 1),))
    assert flag in migration.flags(WISH, ENDS, plan, persistent=True)
    assert migration.parameters(WISH, ENDS, plan, "")["MIGRATE_DISKS"] == ["vda"]
    assert "MIGRATE_DISKS" not in migration.parameters(WISH, ENDS, NOTHING, "")


def test_limits_and_addresses() -> None:
    wish = Wish("db", "u", "fd00::2", bandwidth_mib_s=50)
    values = migration.parameters(wish, ENDS, NOTHING, "<domain/>")
    assert values["BANDWIDTH"] == 50
    assert values["URI"] == "tcp://[fd00::2]"
    assert values["DEST_XML"] == "<domain/>"
    assert not {"BANDWIDTH", "DEST_XML"} & set(migration.parameters(WISH, ENDS, NOTHING, ""))


def test_an_older_qemu_at_the_destination_is_refused() -> None:
    with pytest.raises(BadInput, match=r"11\.1\.3.*older 10\.0\.2"):
        migration.require_possible(WISH, Ends(NEW, OLD))
    migration.require_possible(WISH, Ends(OLD, NEW))


# Where the VM is


def test_nothing_begins_unless_the_destination_says_that_it_has_none_of_the_vm() -> None:
    may = {(here, there) for here in Runs for there in Runs if migration.may_begin(here, there)}
    assert may == {(here, there) for here in (Runs.RUNS, Runs.STANDS) for there in (Runs.OFF, Runs.ABSENT)}


@pytest.mark.parametrize(
    ("source", "destination", "place"),
    [
        (Runs.RUNS, Runs.ABSENT, Whereabouts.SOURCE),
        (Runs.RUNS, Runs.OFF, Whereabouts.SOURCE),
        (Runs.RUNS, Runs.ARRIVING, Whereabouts.SOURCE),
        (Runs.RUNS, Runs.SILENT, Whereabouts.SOURCE),
        (Runs.RUNS, Runs.RUNS, Whereabouts.BOTH),
        (Runs.STANDS, Runs.ABSENT, Whereabouts.SOURCE),
        (Runs.STANDS, Runs.ARRIVING, Whereabouts.UNPROVEN),
        (Runs.STANDS, Runs.RUNS, Whereabouts.UNPROVEN),
        (Runs.STANDS, Runs.SILENT, Whereabouts.UNPROVEN),
        (Runs.ARRIVING, Runs.RUNS, Whereabouts.UNPROVEN),
        (Runs.ABSENT, Runs.RUNS, Whereabouts.DESTINATION),
        (Runs.OFF, Runs.STANDS, Whereabouts.DESTINATION),
        (Runs.ABSENT, Runs.ARRIVING, Whereabouts.UNPROVEN),
        (Runs.ABSENT, Runs.SILENT, Whereabouts.UNPROVEN),
        (Runs.ABSENT, Runs.ABSENT, Whereabouts.NOWHERE),
        (Runs.SILENT, Runs.RUNS, Whereabouts.UNPROVEN),
    ],
)
def test_a_vm_is_where_both_hosts_say(source: Runs, destination: Runs, place: Whereabouts) -> None:
    assert migration.whereabouts(source, destination) is place


# What is copied


def test_what_both_hosts_reach_is_not_copied() -> None:
    assert images.plan([DISK], ["/images"], []) == NOTHING
    network = Source("vdb", "rbd://ceph/pool/db", "network", "raw")
    assert images.plan([network, Source("sda", "", "file", "raw")], [], []) == NOTHING


def test_only_the_top_is_copied_when_its_base_is_on_both_hosts() -> None:
    plan = images.plan([DISK], [], ["/images/base"])
    assert plan.copy is Copy.TOP
    assert plan.images == (Image("vda", DISK.path, "qcow2", 1 << 30, DISK.base, "qcow2"),)


def test_one_base_that_is_missing_there_makes_all_images_whole() -> None:
    other = Source("vdb", "/data/x.qcow2", "file", "qcow2", 5, base="/data/base.qcow2", base_format="qcow2")
    plan = images.plan([DISK, other], [], ["/images/base"])
    assert plan.copy is Copy.ALL
    assert [image.base for image in plan.images] == ["", ""]
    assert images.plan([Source("vda", "/i/x.raw", "file", "raw", 5)], [], ["/images"]).copy is Copy.ALL


def test_a_path_cannot_pretend_to_be_in_a_shared_directory() -> None:
    sly = Source("vda", "/shared/../images/db.qcow2", "file", "qcow2", 5)
    assert images.plan([sly], ["/shared"], []).copy is Copy.ALL


@pytest.mark.parametrize(
    ("disk", "word"),
    [
        (Source("vda", "/dev/vg/db", "block", "raw", 5), "block"),
        (Source("sda", "/iso/deb.iso", "file", "raw", 5, readonly=True), "read-only"),
        (Source("vda", "/images/db", "file", "raw", 0), "how large"),
    ],
)
def test_what_can_be_neither_reached_nor_copied_is_named(disk: Source, word: str) -> None:
    with pytest.raises(BadInput, match=word):
        images.plan([disk], [], [])


DOMAIN = """<domain type='kvm'><name>db</name><memory>1024</memory><devices>
<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/images/db.qcow2' index='1'/>
<backingStore type='file' index='2'><format type='qcow2'/><source file='/images/base.qcow2'/><backingStore/>
</backingStore><target dev='vda' bus='virtio'/></disk>
<disk type='file' device='cdrom'><target dev='sda' bus='sata'/><readonly/></disk>
</devices></domain>"""


def test_disks_are_read_with_what_they_stand_on() -> None:
    (disk,) = domain.disk_sources(DOMAIN)
    assert disk == Source("vda", "/images/db.qcow2", "file", "qcow2", base="/images/base.qcow2", base_format="qcow2")


def test_a_disk_that_is_copied_whole_stands_on_nothing_at_the_destination() -> None:
    (disk,) = domain.disk_sources(domain.on_whole_images(DOMAIN, ["vda"]))
    assert disk.base == ""
    assert domain.on_whole_images(DOMAIN, ["vdb"]) == DOMAIN


def test_an_image_is_described_with_strange_names_quoted() -> None:
    xml = domain.image_xml(Image("vda", "/i/a<b>.qcow2", "qcow2", 7, "/i/'x'.qcow2", "raw"))
    assert "<name>a&lt;b&gt;.qcow2</name>" in xml
    assert "&#x27;x&#x27;.qcow2" in xml
    assert "backingStore" not in domain.image_xml(Image("vda", "/i/a", "raw", 7))


# Who leaves

VMS = tuple(VmFacts(name, f"uuid-{name}", state="running", domain_id=number) for number, name in enumerate("abc", 1))
TO = {"a": "hv2", "b": "hv3", "c": "hv2", "elsewhere": "hv9"}


def chosen(
    rules: list[dict[str, Any]], destinations: dict[str, str] | None = None, **stuck: str
) -> evacuees.Evacuation:
    decisions = policy.decide(policy.parse_rules(rules), VMS)
    return evacuees.choose(decisions, VMS, TO if destinations is None else destinations, stuck)


def test_who_is_to_be_moved_leaves_the_most_important_first() -> None:
    rules = [
        {"match": {"name": "a"}},
        {"match": {"name": "b"}, "treatment": "live"},
        {"critical": True, "priority": 90},
    ]
    found = chosen(rules, {"b": "hv3", "c": "hv2"})
    assert [(one.name, one.destination) for one in found.departures] == [("c", "hv2"), ("b", "hv3")]


def test_who_does_not_come_home_goes_for_good() -> None:
    rules = [
        {"match": {"name": "a"}, "treatment": "live", "return_home": True},
        {"treatment": "live", "max_pause_s": 7},
    ]
    a, b, _ = chosen(rules).departures
    assert (a.journey, a.longest_pause_s) == ("away", evacuees.LONGEST_PAUSE_S)
    assert (b.journey, b.longest_pause_s) == ("for_good", 7.0)


def test_without_a_destination_the_host_is_refused_and_the_plan_named() -> None:
    with pytest.raises(Refused, match=r"a, b, c.*holdfast plan"):
        chosen([{"treatment": "live"}], {})


def test_a_destination_by_the_plan_overrules_the_preference() -> None:
    rules = [{"treatments": ["in_place", "live"]}]
    assert [one.name for one in chosen(rules, {"b": "hv3"}).departures] == ["b"]


def test_a_destination_against_the_policy_is_refused() -> None:
    with pytest.raises(BadInput, match="b is to be moved, and the policy does not allow live"):
        chosen([{"treatment": "in_place"}], {"b": "hv3"})


def test_who_cannot_be_moved_stays_in_place_where_the_policy_allows_it() -> None:
    found = chosen([{"treatments": ["live", "in_place"]}], b="no room")
    assert found.unmoved == {"b": "no room"}
    assert [one.name for one in found.departures] == ["a", "c"]


@pytest.mark.parametrize("next_one", ["cold", "restart"])
def test_who_cannot_be_moved_is_saved_or_shut_down_where_the_policy_wants_that(next_one: str) -> None:
    assert chosen([{"treatments": ["live", next_one]}], b="no room").unmoved == {"b": "no room"}


@pytest.mark.parametrize("treatments", [["live"], ["live", "defer", "in_place"]])
def test_who_cannot_be_moved_and_may_not_stay_stops_the_host(treatments: list[str]) -> None:
    with pytest.raises(Refused, match="b: no room"):
        chosen([{"treatments": treatments}], b="no room")


def test_who_was_to_be_moved_by_the_plan_does_not_fall_back_to_what_was_impossible() -> None:
    with pytest.raises(Refused, match="b: no room"):
        chosen([{"treatments": ["in_place", "live"]}], b="no room")


def test_who_is_left_behind_is_found() -> None:
    decisions = policy.decide(policy.parse_rules([{"treatments": ["live", "in_place"]}]), VMS)
    assert evacuees.left_behind(decisions, VMS[:2], ["b"]) == ("a",)


# What is remembered


def test_the_host_remembers_who_is_away_until_it_is_back(tmp_path: Path) -> None:
    assert away.read(tmp_path) == ()
    one = away.Away("u1", "db", "hv2", "2026-11-21T02:00:00Z", ("/images/db.qcow2",))
    other = away.Away("u2", "app", "hv3", "2026-11-21T02:00:00Z")
    away.note(tmp_path, one)
    away.note(tmp_path, other)
    away.note(tmp_path, one)
    assert away.read(tmp_path) == (other, one)
    assert set(away.known_names(tmp_path)) == {"db", "u1", "app", "u2"}
    away.forget(tmp_path, "u2")
    away.forget(tmp_path, "u3")
    assert away.read(tmp_path) == (one,)
    assert (tmp_path / away.NAME).stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("text", ["{", '{"a": 1}', '[{"uuid": "u"}]', "[3]"])
def test_a_damaged_record_is_no_empty_one(tmp_path: Path, text: str) -> None:
    (tmp_path / away.NAME).write_text(text)
    with pytest.raises(HoldfastError, match="cannot be understood"):
        away.read(tmp_path)
