# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A VM's definition is read as libvirt means it, and changed no more than needed."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from ansible_collections.holdfast.kvm.plugins.module_utils._core import domain, incoming
from ansible_collections.holdfast.kvm.plugins.module_utils._core.errors import BadInput
from ansible_collections.holdfast.kvm.plugins.module_utils._core.facts import Disk, RamBacking
from ansible_collections.holdfast.kvm.plugins.module_utils._core.resources import RamFile

MIB = 1 << 20
QEMU = "xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'"
INCOMING = "<qemu:arg value='-incoming'/><qemu:arg value='defer'/>"
SHARED_FILE = "<memoryBacking><source type='file'/><access mode='shared'/></memoryBacking>"


def vm(*, top: str = "", devices: str = "", root: str = "type='kvm'", memory: str = "524288") -> str:
    return f"""<domain {root}>
  <name>db-1</name>
  <uuid>0d0f4b2a-1f1d-4c3e-9f67-1b1c5a0c7c11</uuid>
  <memory unit='KiB'>{memory}</memory>
  <currentMemory unit='KiB'>{memory}</currentMemory>
  <vcpu placement='static'>2</vcpu>
  <os>
    <type arch='x86_64' machine='pc-q35-10.0'>hvm</type>
  </os>
  {top}
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    {devices}
  </devices>
</domain>
"""


# --- reading


def test_the_usual_facts() -> None:
    facts = domain.vm_facts(
        vm(
            root="type='kvm' id='7'",
            top=f"<title>main database</title>{SHARED_FILE}<cpu mode='host-passthrough'><feature policy='require' "
            "name='invtsc'/><feature policy='disable' name='svm'/></cpu>"
            "<clock offset='utc'><timer name='tsc' frequency='2500000000'/></clock>",
            devices="<interface type='bridge'><source bridge='br0'/></interface>"
            "<interface type='network'><source network='default' bridge='virbr0'/></interface>",
        ),
        state="running",
        autostart=True,
    )
    assert (facts.name, facts.uuid, facts.title) == ("db-1", "0d0f4b2a-1f1d-4c3e-9f67-1b1c5a0c7c11", "main database")
    assert (facts.state, facts.domain_id, facts.running, facts.autostart) == ("running", 7, True, True)
    assert (facts.ram_bytes, facts.vcpus, facts.machine) == (512 * MIB, 2, "pc-q35-10.0")
    assert (facts.cpu_mode, facts.features, facts.tsc_frequency) == ("host-passthrough", ("invtsc",), 2_500_000_000)
    assert (facts.bridges, facts.networks) == (("br0",), ("default",))
    assert facts.emulator == "/usr/bin/qemu-system-x86_64"
    assert (facts.ram_backing, facts.ram_files) == (RamBacking.FILE_SHARED, (RamFile("pc.ram", 512 * MIB),))


def test_tags_are_words_in_metadata_of_their_own() -> None:
    tags = "<metadata><t:tags xmlns:t='urn:holdfast:tags:1'>shop  prod-eu\n</t:tags></metadata>"
    assert domain.vm_facts(vm(top=tags)).tags == ("shop", "prod-eu")
    assert domain.vm_facts(vm()).tags == ()


def test_the_cpu_model_is_known() -> None:
    cpu = "<cpu mode='custom' match='exact'><model fallback='forbid'>EPYC-Rome</model></cpu>"
    facts = domain.vm_facts(vm(top=cpu))
    assert (facts.cpu_mode, facts.cpu_model) == ("custom", "EPYC-Rome")


def test_a_domain_id_given_wins() -> None:
    assert domain.vm_facts(vm()).domain_id == -1
    assert domain.vm_facts(vm(), domain_id=3).domain_id == 3


def test_an_unmigratable_cpu_has_the_invariant_tsc() -> None:
    assert domain.vm_facts(vm(top="<cpu mode='host-passthrough' migratable='off'/>")).features == ("invtsc",)


@pytest.mark.parametrize(
    ("os", "firmware"),
    [
        ("<os/>", "bios"),
        ("<os firmware='efi'/>", "efi"),
        ("<os><loader readonly='yes' type='pflash'>/OVMF.fd</loader></os>", "efi"),
    ],
)
def test_firmware(os: str, firmware: str) -> None:
    assert domain.vm_facts(f"<domain><memory>1024</memory>{os}</domain>").firmware == firmware


@pytest.mark.parametrize(
    ("top", "backing"),
    [
        ("", RamBacking.ANONYMOUS),
        ("<memoryBacking><source type='anonymous'/><access mode='shared'/></memoryBacking>", RamBacking.ANONYMOUS),
        ("<memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>", RamBacking.MEMFD),
        ("<memoryBacking><source type='file'/></memoryBacking>", RamBacking.FILE_PRIVATE),
        (SHARED_FILE, RamBacking.FILE_SHARED),
        (
            "<memoryBacking><hugepages/><source type='file'/><access mode='shared'/></memoryBacking>",
            RamBacking.HUGEPAGES,
        ),
        (
            SHARED_FILE + "<cpu><numa><cell id='0' memory='1024' memAccess='private'/></numa></cpu>",
            RamBacking.FILE_PRIVATE,
        ),
    ],
)
def test_where_the_ram_is(top: str, backing: RamBacking) -> None:
    assert domain.vm_facts(vm(top=top)).ram_backing is backing


@pytest.mark.parametrize(
    "top",
    [
        "<memoryBacking><source type='file'/><access mode='shared'/><discard/></memoryBacking>",
        "<cpu><numa><cell id='0' memory='1024' discard='yes'/></numa></cpu>",
    ],
)
def test_discarded_ram_is_seen(top: str) -> None:
    assert domain.vm_facts(vm(top=top)).ram_discard


@pytest.mark.parametrize(
    ("words", "nodes"),
    [
        ("", ()),
        ("<memory nodeset='1'/>", (1,)),
        ("<memory mode='strict' nodeset='0-3,^1'/>", (0, 2, 3)),
        ("<memory mode='restrictive' nodeset=' 1, 3'/>", (1, 3)),
        ("<memory mode='preferred' nodeset='1'/>", ()),
        ("<memory mode='strict' placement='auto'/>", ()),
        ("<memnode cellid='0' nodeset='1'/>", ()),
    ],
)
def test_ram_is_bound_where_numatune_says_so(words: str, nodes: tuple[int, ...]) -> None:
    (file,) = domain.vm_facts(vm(top=f"<numatune>{words}</numatune>")).ram_files
    assert file.nodes == nodes


def test_each_numa_cell_is_bound_on_its_own_or_as_the_whole_vm() -> None:
    cells = "".join(f"<cell id='{number}' memory='1' unit='GiB'/>" for number in range(3))
    bound = "<memory nodeset='2'/><memnode cellid='0' nodeset='1'/><memnode cellid='1' mode='preferred' nodeset='1'/>"
    files = domain.vm_facts(vm(top=f"<cpu><numa>{cells}</numa></cpu><numatune>{bound}</numatune>")).ram_files
    assert [file.nodes for file in files] == [(1,), (), (2,)]


@pytest.mark.parametrize("nodeset", ["one", "1-", "0-99999", "^", "1;2"])
def test_a_set_of_nodes_that_is_none_is_refused(nodeset: str) -> None:
    with pytest.raises(BadInput, match="not a set of CPUs or NUMA nodes"):
        domain.vm_facts(vm(top=f"<numatune><memory nodeset='{nodeset}'/></numatune>"))


def test_each_numa_cell_has_its_own_ram_file() -> None:
    cells = "<cell id='0' memory='1' unit='GiB'/><cell id='1' memory='1048576'/><cell id='2' memory='0'/>"
    facts = domain.vm_facts(vm(top=f"<cpu><numa>{cells}</numa></cpu>"))
    assert facts.ram_files == (RamFile("ram-node0", 1024 * MIB), RamFile("ram-node1", 1024 * MIB))
    assert facts.ram_bytes == 2048 * MIB


def test_memory_modules_are_not_main_ram() -> None:
    module = "<memory model='dimm'><target><size unit='MiB'>256</size></target></memory>"
    facts = domain.vm_facts(vm(devices=module))
    assert (facts.memory_devices, facts.ram_files) == (("dimm",), (RamFile("pc.ram", 256 * MIB),))


def test_ram_is_counted_in_whole_mebibytes() -> None:
    assert domain.vm_facts(vm(memory="524289")).ram_bytes == 513 * MIB


@pytest.mark.parametrize(
    ("disk", "facts"),
    [
        (
            "<disk type='file'><driver name='qemu' type='qcow2'/><source file='/a.qcow2'/><target dev='vda'/></disk>",
            Disk("vda", "/a.qcow2", "file", "qcow2"),
        ),
        (
            "<disk type='block'><driver type='raw'/><source dev='/dev/vg/a'/><target dev='vdb'/><readonly/></disk>",
            Disk("vdb", "/dev/vg/a", "block", "raw", readonly=True),
        ),
        (
            "<disk type='network'><driver type='raw'/><source protocol='rbd' name='pool/a'><host name='mon1'/></source>"
            "<target dev='vdc'/></disk>",
            Disk("vdc", "rbd://mon1/pool/a", "network", "raw"),
        ),
        ("<disk type='volume'><source pool='p' volume='v'/><target dev='vdd'/></disk>", Disk("vdd", "p/v", "volume")),
    ],
)
def test_disks(disk: str, facts: Disk) -> None:
    assert domain.vm_facts(vm(devices=disk + "<disk device='cdrom'><target dev='sda'/></disk>")).disks == (facts,)


@pytest.mark.parametrize(
    ("device", "name"),
    [
        (
            "<hostdev mode='subsystem' type='pci'><source>"
            "<address domain='0x0000' bus='0x01' slot='0x00' function='0x0'/></source></hostdev>",
            "pci 0000:01:00.0",
        ),
        ("<hostdev mode='subsystem' type='mdev'><source><address uuid='c2'/></source></hostdev>", "mdev c2"),
        ("<hostdev mode='subsystem' type='usb'><source><address bus='1' device='2'/></source></hostdev>", "usb 1:2"),
        ("<interface type='hostdev'/>", "network interface"),
        ("<disk type='nvme'><target dev='vda'/></disk>", "NVMe disk vda"),
    ],
)
def test_devices_of_the_host(device: str, name: str) -> None:
    assert domain.vm_facts(vm(devices=device)).hostdevs == (name,)


@pytest.mark.parametrize(
    ("device", "word"),
    [
        ("<controller type='nvme'/>", "NVMe"),
        ("<crypto model='virtio' type='qemu'/>", "crypto"),
        ("<disk type='vhostuser'/>", "vhost-user"),
        ("<disk type='file'><source file='/a'/><transient/></disk>", "transient"),
        ("<input type='passthrough' bus='virtio'/>", "input"),
        ("<interface type='vdpa'/>", "vDPA"),
        ("<iommu model='amd'/>", "IOMMU"),
        ("<serial type='pty'><target type='usb-serial'/></serial>", "USB serial"),
        ("<shmem name='a'/>", "ivshmem"),
        ("<sound model='virtio'/>", "sound"),
        ("<tpm model='tpm-crb'><backend type='passthrough'/></tpm>", "TPM"),
        ("<video><model type='virtio'><acceleration accel3d='yes'/></model></video>", "virgl"),
        ("<video><driver name='vhostuser'/><model type='virtio'/></video>", "vhost-user"),
    ],
)
def test_devices_that_lose_their_state(device: str, word: str) -> None:
    (found,) = domain.vm_facts(vm(devices=device)).unsafe_devices
    assert word in found


def test_everyday_devices_are_safe() -> None:
    everyday = (
        "<controller type='scsi' model='virtio-scsi'/><interface type='bridge'><source bridge='br0'/></interface>"
        "<input type='tablet' bus='usb'/><video><model type='virtio'/></video><memballoon model='virtio'/>"
        "<rng model='virtio'/><redirdev bus='usb' type='spicevmc'/><sound model='ich9'/>"
        "<watchdog model='itco'/><iommu model='intel'/>"
    )
    facts = domain.vm_facts(vm(devices=everyday))
    assert (facts.unsafe_devices, facts.watched_devices, facts.hostdevs, facts.filesystems) == ((), (), (), ())


def test_video_memory_is_counted() -> None:
    cards = (
        "<video><model type='qxl' ram='65536' vram='65536' vgamem='16384' heads='1'/></video>"
        "<video><model type='vga' vram='16384'/></video><video><model type='virtio' heads='1'/></video>"
    )
    assert domain.vm_facts(vm(devices=cards)).video_bytes == 144 << 20


def test_hyper_v_passthrough_is_unsafe() -> None:
    (found,) = domain.vm_facts(vm(top="<features><hyperv mode='passthrough'/></features>")).unsafe_devices
    assert "Hyper-V" in found


@pytest.mark.parametrize(
    ("device", "word"),
    [
        ("<tpm model='tpm-crb'><backend type='emulator'/></tpm>", "TPM emulator"),
        ("<interface type='user'/>", "user-mode"),
        ("<vsock model='virtio'/>", "vsock"),
    ],
)
def test_devices_to_know_about(device: str, word: str) -> None:
    facts = domain.vm_facts(vm(devices=device))
    assert not facts.unsafe_devices
    assert word in facts.watched_devices[0]


@pytest.mark.parametrize(
    ("device", "name"),
    [
        ("<filesystem type='mount'><driver type='virtiofs'/><target dir='share'/></filesystem>", "virtiofs:share"),
        ("<filesystem type='mount'><target dir='old'/></filesystem>", "9p:old"),
        ("<filesystem type='mount'><driver type='mtp'/><target dir='cam'/></filesystem>", "mtp:cam"),
    ],
)
def test_shared_file_systems(device: str, name: str) -> None:
    assert domain.vm_facts(vm(devices=device)).filesystems == (name,)


def test_launch_security_and_jobs() -> None:
    assert domain.vm_facts(vm(top="<launchSecurity type='sev-snp'/>")).launch_security == "sev-snp"
    mirrored = vm(devices="<disk type='file'><source file='/a'/><target dev='vda'/><mirror job='copy'/></disk>")
    assert domain.vm_facts(mirrored).job == "block job on vda"
    assert domain.vm_facts(mirrored, job="backup").job == "backup"


def test_a_restored_vm_has_no_arguments_of_its_own() -> None:
    restored = incoming.restore_xml(vm())
    assert domain.vm_facts(restored).watched_devices == ()
    own = vm(root=f"type='kvm' {QEMU}", top="<qemu:commandline><qemu:arg value='-S'/></qemu:commandline>")
    assert "QEMU arguments" in domain.vm_facts(own).watched_devices[0]


@pytest.mark.parametrize(("definition", "converted"), [("", False), (vm(), False), (vm(top=SHARED_FILE), True)])
def test_whether_the_next_start_will_be_in_the_pool(definition: str, converted: bool) -> None:
    assert domain.vm_facts(vm(), definition=definition).definition_converted is converted


@pytest.mark.parametrize(
    "xml",
    [
        "",
        "<domain>",
        "<network><name>n</name></network>",
        "<domain><name>n</name></domain>",
        "<domain><memory unit='elephants'>1</memory></domain>",
        "<!DOCTYPE domain [<!ENTITY a 'aaaa'>]><domain><memory>&a;</memory></domain>",
    ],
)
def test_what_is_no_definition_is_refused(xml: str) -> None:
    with pytest.raises(BadInput):
        domain.vm_facts(xml)


# --- libvirt's directory of a running VM (results of libvirt 9.0 itself, called with LC_ALL=C.UTF-8 and LC_ALL=C)


@pytest.mark.parametrize(
    ("name", "in_utf8", "in_c"),
    [
        ("short", "7-short", "7-short"),
        ("a" * 30, "7-" + "a" * 20, "7-" + "a" * 20),
        ("äöü" * 10, "7-" + "äöü" * 6 + "äö", "7-" + "äöü" * 3 + "ä"),
        ("日本語" * 9, "7-" + "日本語" * 6 + "日本", "7-" + "日本語" * 2 + "\udce6\udc97"),
        ("x" * 19 + "éz", "7-" + "x" * 19 + "é", "7-" + "x" * 19 + "\udcc3"),
    ],
)
def test_live_directory_is_named_as_libvirt_does(name: str, in_utf8: str, in_c: str) -> None:
    assert domain.live_directory(7, name) == in_utf8
    assert domain.live_directories(7, name) == tuple(dict.fromkeys((in_utf8, in_c)))


# --- conversion to the pool, and back

CONVERTED_BACKING = """<memoryBacking>
    <source type='file'/>
    <access mode='shared'/>
    <allocation mode='ondemand'/>
  </memoryBacking>"""


@pytest.mark.parametrize(
    "backing",
    [
        "",
        "<memoryBacking/>",
        "<memoryBacking>\n    <source type='memfd'/>\n    <access mode='shared'/>\n  </memoryBacking>",
        "<memoryBacking><source type='anonymous'/></memoryBacking>",
        "<memoryBacking><source type='file'/><access mode='private'/><allocation mode='immediate'/></memoryBacking>",
        "<memoryBacking><source type='file'/><access mode='shared'/><discard/></memoryBacking>",
        "<memoryBacking><locked/><nosharepages/></memoryBacking>",
        "<memoryBacking><!-- a > b & c --><nosharepages/></memoryBacking>",
    ],
)
@pytest.mark.parametrize(
    "metadata",
    [
        "",
        "<metadata>\n    <os:x xmlns:os='urn:os'/>\n  </metadata>",
        "<metadata><a:b xmlns:a='urn:a' note='1 > 0'/></metadata>",
    ],
)
def test_conversion_and_its_undoing_leave_no_trace(backing: str, metadata: str) -> None:
    xml = vm(top=f"{metadata}\n  {backing}<!-- kept -->")
    converted, changed = domain.to_pool_backing(xml)
    assert changed
    facts = domain.vm_facts(converted)
    assert (facts.ram_backing, facts.ram_discard) == (RamBacking.FILE_SHARED, False)
    assert "<!-- kept -->" in converted
    assert domain.to_pool_backing(converted) == (converted, False)
    assert domain.from_pool_backing(converted) == (xml, True)


def test_conversion_as_it_is_written() -> None:
    converted, _ = domain.to_pool_backing(vm())
    assert f"</currentMemory>\n  {CONVERTED_BACKING}\n  <vcpu" in converted
    assert "  <metadata>\n    <holdfast:original-memory-backing xmlns:holdfast='urn:holdfast:kvm:1'>" in converted


def test_conversion_keeps_locked_ram() -> None:
    converted, _ = domain.to_pool_backing(vm(top="<memoryBacking><locked/><source type='memfd'/></memoryBacking>"))
    assert "<memoryBacking>\n    <locked/>\n    <source type='file'/>" in converted


def test_a_vm_whose_ram_is_there_already_is_left_alone() -> None:
    xml = vm(top=SHARED_FILE)
    assert domain.to_pool_backing(xml) == (xml, False)
    assert domain.from_pool_backing(xml) == (xml, False)


def test_a_backing_changed_since_is_the_operators() -> None:
    converted, _ = domain.to_pool_backing(vm())
    edited = converted.replace(CONVERTED_BACKING, "<memoryBacking><source type='memfd'/></memoryBacking>")
    undone, changed = domain.from_pool_backing(edited)
    assert changed
    assert "memfd" in undone
    assert "holdfast" not in undone
    again, _ = domain.to_pool_backing(edited)
    assert again.count("<holdfast:") == 1
    assert domain.from_pool_backing(again) == (undone, True)


@pytest.mark.parametrize(
    ("top", "word"),
    [
        ("<memoryBacking><hugepages/></memoryBacking>", "hugepages"),
        ("<cpu><numa><cell id='1' memory='1024' memAccess='private'/></numa></cpu>", "cell 1"),
        ("<cpu><numa><cell id='0' memory='1024' discard='yes'/></numa></cpu>", "cell 0"),
    ],
)
def test_what_the_operator_has_to_decide_is_refused(top: str, word: str) -> None:
    with pytest.raises(BadInput, match=word) as refusal:
        domain.to_pool_backing(vm(top=top))
    assert "db-1" in str(refusal.value)


# --- restore


def arguments(xml: str) -> list[str | None]:
    space = {"q": "http://libvirt.org/schemas/domain/qemu/1.0"}
    return [entry.get("value") for entry in ET.fromstring(xml).findall("q:commandline/q:arg", space)]


@pytest.mark.parametrize(
    ("root", "top", "expected"),
    [
        ("", "", ["-incoming", "defer"]),
        (QEMU, "", ["-incoming", "defer"]),
        (QEMU, "<qemu:commandline/>", ["-incoming", "defer"]),
        (QEMU, f"<qemu:commandline>{INCOMING}</qemu:commandline>", ["-incoming", "defer"]),
        (QEMU, f"<qemu:commandline>{INCOMING}{INCOMING}</qemu:commandline>", ["-incoming", "defer"]),
        (
            QEMU,
            f"<qemu:commandline><qemu:arg value='-S'/>{INCOMING}<qemu:arg value='-x'/>"
            "<qemu:env name='A' value='b'/></qemu:commandline>",
            ["-S", "-x", "-incoming", "defer"],
        ),
        ("xmlns:q='http://libvirt.org/schemas/domain/qemu/1.0'", "<q:commandline/>", ["-incoming", "defer"]),
        (
            "",
            "<commandline xmlns='http://libvirt.org/schemas/domain/qemu/1.0'><arg value='-S'/></commandline>",
            ["-S", "-incoming", "defer"],
        ),
    ],
)
def test_a_restore_waits_for_its_stream_and_keeps_other_arguments(root: str, top: str, expected: list[str]) -> None:
    restored = incoming.restore_xml(vm(root=f"type='kvm' {root}", top=top))
    assert arguments(restored) == expected
    assert ("name='A'" in restored) == ("name='A'" in top)
    assert incoming.restore_xml(restored) == restored


def test_a_restored_definition_can_be_had_without_the_argument() -> None:
    xml = vm(root=f"type='kvm' {QEMU}")
    assert incoming.without_incoming(xml) == xml
    assert arguments(incoming.without_incoming(incoming.restore_xml(xml))) == []
    assert "commandline" not in incoming.without_incoming(incoming.restore_xml(xml))


@pytest.mark.parametrize(
    ("xml", "told"),
    [("<domain>", "cannot be read"), ('<!DOCTYPE domain [<!ENTITY a "b">]><domain/>', "document type")],
)
def test_a_save_image_with_other_than_plain_xml_is_refused(xml: str, told: str) -> None:
    with pytest.raises(BadInput, match=told):
        incoming.restore_xml(xml)
