#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# The guest's first process: mounts, one network interface, an SSH server, and a line that says so.
# Every process that is started here delays each run by about 20 ms under TCG.
export PATH=/bin:/sbin:/usr/bin HOME=/root
mount -a
if [ ! -e /etc/harness ]; then
    # No run: a person at the console.
    setsid sh -c 'exec sh -i </dev/ttyS0 >/dev/ttyS0 2>&1'
    poweroff -f
fi
. /etc/harness
[ -z "$boot_modules" ] || modprobe -a $boot_modules ||
    echo "$token cannot load $boot_modules" > /dev/console
ifconfig eth0 10.0.2.15 netmask 255.255.255.0 up || echo "$token has no network" > /dev/console
echo "$token ready" > /dev/console
while :; do
    dropbear -F -E -s -j -k -p 10.0.2.15:22 -r /etc/dropbear_host_key
    echo "$token: the SSH server ended" > /dev/console
    sleep 1
done
