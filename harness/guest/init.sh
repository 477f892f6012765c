#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# The guest's first process: mounts, one network interface, an SSH server, and a line that says so.
export PATH=/bin:/sbin:/usr/bin HOME=/root
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts
mount -t devpts devpts /dev/pts
if [ ! -e /etc/harness ]; then
    # No run: a person at the console.
    setsid sh -c 'exec sh -i </dev/ttyS0 >/dev/ttyS0 2>&1'
    poweroff -f
fi
. /etc/harness
for module in $boot_modules; do
    modprobe "$module" || echo "$token cannot load $module" > /dev/console
done
ifconfig lo 127.0.0.1 up
ifconfig eth0 10.0.2.15 netmask 255.255.255.0 up || echo "$token no network" > /dev/console
echo "$token ready" > /dev/console
while :; do
    dropbear -F -E -s -j -k -p 10.0.2.15:22 -r /etc/dropbear_host_key
    echo "$token the SSH server ended" > /dev/console
    sleep 1
done
