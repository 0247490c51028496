#!/bin/sh
# Finishes the base image. mmdebstrap calls it with the root directory of the new system.
set -eu
root=$1

# C.UTF-8 is part of libc; programs that insist on a country get one.
printf 'en_US.UTF-8 UTF-8\n' >"$root/etc/locale.gen"
chroot "$root" locale-gen >/dev/null
printf 'LANG=C.UTF-8\n' >"$root/etc/default/locale"

chroot "$root" useradd --uid 1000 --user-group --create-home --home-dir /home/user --shell /bin/bash user
printf 'user ALL=(ALL:ALL) NOPASSWD:ALL\nDefaults !fqdn\n' >"$root/etc/sudoers.d/user"
chmod 0440 "$root/etc/sudoers.d/user"

# One sandbox is one tenant's: pip may write where its user says.
rm -f "$root"/usr/lib/python3.*/EXTERNALLY-MANAGED

# Sandboxes bring their own; a machine id must not be shared.
: >"$root/etc/machine-id"
rm -f "$root/var/lib/dbus/machine-id"
printf 'sandbox\n' >"$root/etc/hostname"
printf '127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n' >"$root/etc/hosts"
rm -f "$root/etc/resolv.conf"
printf 'nameserver 1.1.1.1\nnameserver 8.8.8.8\n' >"$root/etc/resolv.conf"

rm -rf "$root"/var/lib/apt/lists/* "$root"/var/cache/apt/*.bin "$root"/var/cache/apt/archives/*.deb \
    "$root"/var/cache/debconf/*-old "$root"/var/lib/dpkg/*-old "$root"/var/log/*.log "$root"/var/log/apt "$root"/tmp/*
find "$root/var/log" -type f -delete
