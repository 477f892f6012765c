#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# The guest's first process: mounts, one network interface, an SSH server, and a line that says so.
# Every process that is started here delays each run by about 20 ms under TCG.
export PATH=/bin:/sbin:/usr/bin HOME=/root
mount -a
if [ ! -e /etc/harness ]; then
    # No run: a person at the console, who gets the modprobe that runs get.
    export ENV=/etc/shell
    setsid sh -c 'exec sh -i </dev/ttyS0 >/dev/ttyS0 2>&1'
    poweroff -f
fi
. /etc/harness
# Through the kernel's log, because only there no other line can get in between.
say() { echo "<1>$token $*" > /dev/kmsg; }
[ -z "$boot_modules" ] || /sbin/modprobe -a $boot_modules || say "cannot load $boot_modules"
ifconfig eth0 10.0.2.15 netmask 255.255.255.0 up || say "has no network"
say ready
while :; do
    dropbear -F -E -s -j -k -p 10.0.2.15:22 -r /etc/dropbear_host_key
    say "has lost its SSH server"
    sleep 1
done
