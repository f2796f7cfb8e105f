#!/bin/sh
# Copyright (c) 2026 holdfast contributors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Runs inside the new root of a lab hypervisor. What it sets is what an operator's installation would have
# before holdfast ever comes: a boot loader, a bridge, SSH, libvirt with the distribution's defaults.
set -eu

# The newer kernel and QEMU, to be installed later by apt and without a network, as from a local mirror.
rm /etc/apt/preferences.d/lab
apt-get update -q
mkdir -p /srv/packages
apt-get install -q -y -d -t trixie-backports linux-image-amd64 qemu-system-x86 qemu-utils
# What many hosts have, and what is in the way of our crash kernel if nobody sees to it.
apt-get install -q -y -d kdump-tools
find /var/cache/apt/archives -name '*bpo*.deb' -exec mv {} /srv/packages/ ';'
for package in /var/cache/apt/archives/*.deb; do
    [ -e "$package" ] || continue
    name=$(dpkg-deb -f "$package" Package) version=$(dpkg-deb -f "$package" Version)
    [ "$(dpkg-query -W -f '${Version}' "$name" 2>/dev/null)" = "$version" ] || mv "$package" /srv/packages/
done
cd /srv/packages
apt-ftparchive packages . > Packages
apt-ftparchive -o APT::FTPArchive::Release::Suite=trixie-backports \
    -o APT::FTPArchive::Release::Codename=trixie-backports release . > /tmp/Release
mv /tmp/Release Release
rm -rf /etc/apt/sources.list /etc/apt/sources.list.d/* /var/lib/apt/lists/* /var/cache/apt/archives/*.deb
cat > /etc/apt/sources.list.d/lab.sources <<'END'
Types: deb
URIs: file:/srv/packages
Suites: ./
Trusted: yes
END
apt-get update -q

# One bridge for the host itself and its guests. Which cables are in it, and the addresses, are given from outside.
cat > /etc/systemd/network/10-br0.netdev <<'END'
[NetDev]
Name=br0
Kind=bridge
MACAddress=none
[Bridge]
STP=no
ForwardDelaySec=0
END
systemctl enable -q systemd-networkd ssh
# What nobody here looks at, and what an emulated host would work on for seconds at each boot and each login.
systemctl mask -q systemd-networkd-wait-online.service apt-daily.timer apt-daily-upgrade.timer \
    dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer man-db.timer \
    getty@tty1.service modprobe@drm.service systemd-binfmt.service systemd-pstore.service user@.service
printf 'blacklist cfg80211\nblacklist psmouse\nblacklist pcspkr\n' > /etc/modprobe.d/lab.conf

# Profiles of programs that this host has not got. Emulation compiles a hundred of them for half a minute, once for
# each kernel; libvirt's own stay, as the distribution made them.
find /etc/apparmor.d -maxdepth 1 -type f ! -name '*libvirt*' ! -name unprivileged_userns -delete

# A hypervisor's name and network are given by the machine it runs on.
cat > /usr/local/sbin/lab-identity <<'END'
#!/bin/sh
given=/sys/firmware/qemu_fw_cfg/by_name/opt/holdfast.lab
[ -r "$given/hostname/raw" ] || exit 0
hostname "$(cat "$given/hostname/raw")"
cp "$given/hostname/raw" /etc/hostname
cp "$given/hosts/raw" /etc/hosts
for entry in "$given"/*.network; do # networkd, which is not root, has to read them
    install -m 644 "$entry/raw" "/etc/systemd/network/${entry##*/}"
done
END
chmod 755 /usr/local/sbin/lab-identity
cat > /etc/systemd/system/lab-identity.service <<'END'
[Unit]
DefaultDependencies=no
After=systemd-remount-fs.service systemd-modules-load.service
Before=systemd-networkd.service libvirtd.service sysinit.target
[Service]
Type=oneshot
ExecStart=/usr/local/sbin/lab-identity
[Install]
WantedBy=sysinit.target
END
echo qemu_fw_cfg > /etc/modules-load.d/lab.conf
systemctl enable -q lab-identity

ssh-keygen -q -t ed25519 -N '' -f /etc/ssh/ssh_host_ed25519_key <<'END' || true
y
END
rm -f /etc/ssh/ssh_host_rsa_key* /etc/ssh/ssh_host_ecdsa_key*
printf 'HostKey /etc/ssh/ssh_host_ed25519_key\nUseDNS no\nPermitRootLogin prohibit-password\n' \
    > /etc/ssh/sshd_config.d/lab.conf
chmod 700 /root/.ssh
chmod 600 /root/.ssh/*
# Lab hosts share one host key and let each other in, as libvirt's live migration over SSH needs it.
printf 'hv* %s\n' "$(cut -d ' ' -f 1,2 /etc/ssh/ssh_host_ed25519_key.pub)" > /etc/ssh/ssh_known_hosts
printf 'LABEL=lab-root / ext4 rw,noatime 0 1\n' > /etc/fstab
# Empty, not "uninitialized": a host that gets its identity, not one that is set up for the first time.
: > /etc/machine-id

# GRUB for a BIOS machine; for UEFI the signed one is taken as it is. grub-mkconfig cannot find a root device in here, so the first menu is written by hand;
# the first update-grub on the running host replaces it.
mkdir -p /boot/grub/i386-pc
cp /usr/lib/grub/i386-pc/*.mod /usr/lib/grub/i386-pc/*.lst /boot/grub/i386-pc/
grub-mkimage -O i386-pc -d /usr/lib/grub/i386-pc -o /boot/grub/i386-pc/core.img -p '(hd0,msdos1)/boot/grub' \
    biosdisk part_msdos ext2
# Without mitigations, which an emulated CPU pays for at every return and needs for nothing. And without a second look at
# the CPU's clock: a host that waits for its emulator takes it for unstable, and with another one it is slow for good.
cat > /etc/default/grub <<'END'
GRUB_DEFAULT=0
GRUB_TIMEOUT=0
GRUB_DISTRIBUTOR=Debian
GRUB_CMDLINE_LINUX="console=ttyS0,115200 net.ifnames=0 mitigations=off tsc=reliable"
GRUB_CMDLINE_LINUX_DEFAULT=""
GRUB_TERMINAL=console
GRUB_DISABLE_OS_PROBER=true
GRUB_DISABLE_LINUX_UUID=true
GRUB_DISABLE_SUBMENU=true
END
# What GRUB reads first when UEFI starts it: where its real configuration is.
cat > /boot/grub/esp.cfg <<'END'
search.fs_label lab-root root
set prefix=($root)/boot/grub
configfile $prefix/grub.cfg
END
kernel=$(ls /boot/vmlinuz-* | sort -V | tail -1)
cat > /boot/grub/grub.cfg <<END
linux $kernel root=/dev/vda1 ro console=ttyS0,115200 net.ifnames=0 mitigations=off tsc=reliable
initrd $(echo "$kernel" | sed 's/vmlinuz/initrd.img/')
boot
END
systemctl set-default -q multi-user.target
# Nothing in here is older than the packages: no caches to be made anew when a host starts.
touch -r /usr /etc/.updated /var/.updated
