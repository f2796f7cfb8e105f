# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What stands in front of the next kernel's initrd needs nothing of that initrd."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from ansible_collections.holdfast.kvm.plugins.module_utils._core import cmdline, cpio, early
from ansible_collections.holdfast.kvm.plugins.module_utils._core.errors import CommandFailed, HoldfastError
from ansible_collections.holdfast.kvm.plugins.module_utils._core.guard import Staged

GENERATION = "g-20261121T020000-ab12cd"
LINE = f"root=/dev/vda1 ro memmap=0x60000000!0x100000000 crashkernel=640M holdfast.generation={GENERATION}"
RELEASE = "7.3.4"
KLIBC = "klibc-cbxFsLVJ9bt_YYfJZGrxjofFc_w.so"
LDD = """\
\tlinux-vdso.so.1 (0x00007fd5dc3f0000)
\tlibc.so.6 => {root}/libc.so.6 (0x00007fd5dc0bc000)
\tlibz.so.1 => {root}/libz.so.1 (0x00007fd5dc0b7000)
\t{root}/ld-linux-x86-64.so.2 (0x00007fd5dc3f2000)
"""


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Files of a host, as far as they matter here."""
    texts = {f"usr/lib/klibc/bin/{name}": f"\x7fELF {name} /lib/{KLIBC}\0 and more" for name in early.PROGRAMS}
    texts |= {f"usr/lib/{KLIBC}": "klibc", "usr/sbin/kexec": "kexec", "libc.so.6": "libc", "libz.so.1": "libz"}
    texts |= {"ld-linux-x86-64.so.2": "loader", "boot/image": "old kernel", "boot/initrd": "old initrd"}
    modules = f"lib/modules/{RELEASE}"
    texts |= {
        f"{modules}/modules.dep": "kernel/softdog.ko: kernel/watchdog.ko\nkernel/watchdog.ko:\n",
        f"{modules}/modules.builtin": "kernel/unix.ko\n",
        f"{modules}/kernel/softdog.ko": "\x7fELF softdog",
        f"{modules}/kernel/watchdog.ko": "\x7fELF watchdog",
    }
    for name, text in texts.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(early, "run", lambda _argv: LDD.format(root=tmp_path))
    monkeypatch.setattr(early, "ROOT", tmp_path)
    return tmp_path


def staged(root: Path, deadline_s: float = 660.0) -> Staged:
    line = cmdline.crash_command_line(LINE)
    return Staged(GENERATION, str(root / "boot/image"), str(root / "boot/initrd"), line, deadline_s)


def test_all_that_it_takes_is_in_a_directory_of_its_own(root: Path) -> None:
    found = early.files(staged(root), RELEASE)
    assert {name for name in found if not name.startswith("holdfast/")} == {"init", "conf/conf.d/holdfast"}
    assert {name for name in found if name.endswith(".ko")} == {"holdfast/softdog.ko", "holdfast/watchdog.ko"}
    assert found["holdfast/image"] == b"old kernel"
    assert found["holdfast/initrd"] == b"old initrd"
    assert found["holdfast/lib/libz.so.1"] == b"libz"
    assert found["holdfast/ld.so"] == b"loader"
    assert found["holdfast/k.so"] == b"klibc"
    assert cmdline.generation_of(found["holdfast/cmdline"].decode()) == GENERATION


def test_programs_find_their_interpreter_there_and_are_as_long_as_before(root: Path) -> None:
    sh = early.files(staged(root), RELEASE)["holdfast/sh"]
    before = (root / "usr/lib/klibc/bin/sh").read_bytes()
    assert b"/holdfast/k.so\0" in sh
    assert KLIBC.encode() not in sh
    assert len(sh) == len(before)
    assert sh.endswith(b"\0 and more")


def test_the_initrds_own_init_reads_it_before_anything_else(root: Path) -> None:
    found = early.files(staged(root), RELEASE)
    assert found["conf/conf.d/holdfast"] == b"/holdfast/sh /holdfast/guard >/dev/kmsg 2>&1\n"
    script = found["holdfast/guard"].decode()
    subprocess.run(["sh", "-n"], input=script, text=True, check=True)
    loads = [line for line in script.splitlines() if line.startswith("insmod") or "/holdfast/kexec" in line]
    # The timer comes last: without a kernel that takes over it is left to the later guard.
    kexec, first, second = loads
    assert kexec.startswith("/holdfast/ld.so")
    assert first == "insmod /holdfast/watchdog.ko"
    assert second == "insmod /holdfast/softdog.ko soft_margin=660 soft_panic=1 nowayout=0"


def test_without_an_init_in_the_initrd_the_old_kernel_takes_over_at_once(root: Path) -> None:
    init = early.files(staged(root), RELEASE)["init"].decode()
    subprocess.run(["sh", "-n"], input=init, text=True, check=True)
    assert init.startswith("#!/holdfast/sh\n")
    guarded, *_, last = [line for line in init.splitlines() if "/holdfast/guard" in line or "sysrq" in line]
    assert guarded.startswith("/holdfast/sh /holdfast/guard")
    assert last == "echo c >/proc/sysrq-trigger"


def test_without_a_deadline_there_is_no_timer(root: Path) -> None:
    found = early.files(staged(root, 0.0), RELEASE)
    assert not [name for name in found if name.endswith(".ko")]
    subprocess.run(["sh", "-n"], input=found["holdfast/guard"], check=True)


def test_it_is_in_front_of_the_initrd_for_as_long_as_that_is_loaded(root: Path) -> None:
    (root / "new-initrd").write_text("new initrd")
    with early.in_front(staged(root), RELEASE, root / "new-initrd", root) as whole:
        content = whole.read_bytes()
        assert content.startswith(b"070701")
        assert whole.stat().st_mode & 0o777 == 0o600, "there may be keys of disks in an initrd"
        assert content.endswith(b"new initrd")
        assert content[: -len("new initrd")] == cpio.archive(early.files(staged(root), RELEASE))
    assert not whole.exists()


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        ("usr/lib/klibc/bin/sh", "klibc-utils"),
        (f"lib/modules/{RELEASE}/modules.dep", "cannot be made"),
        ("boot/initrd", "cannot be made"),
        ("libz.so.1", "cannot be made"),
    ],
)
def test_what_is_missing_is_named_and_nothing_is_left(root: Path, harm: str, told: str) -> None:
    (root / "new-initrd").write_text("new initrd")
    (root / harm).unlink()
    with pytest.raises(HoldfastError, match=told), early.in_front(staged(root), RELEASE, root / "new-initrd", root):
        raise AssertionError("not reached")
    assert not (root / "initrd.guarded").exists()


def test_another_kind_of_program_is_not_touched(root: Path) -> None:
    (root / "usr/lib/klibc/bin/sh").write_text("\x7fELF static")
    with pytest.raises(HoldfastError, match="no program of klibc"):
        early.files(staged(root), RELEASE)


def test_a_failing_load_leaves_nothing_either(root: Path) -> None:
    (root / "new-initrd").write_text("new initrd")
    with (
        pytest.raises(CommandFailed),
        early.in_front(staged(root), RELEASE, root / "new-initrd", root) as whole,
    ):
        raise CommandFailed("kexec ended with 1")
    assert not whole.exists()
