#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# Prints everything that a verdict rests on, in sections. $1 is a word that nothing else can know.
token=$1
section() { echo "$token $1"; }
cd /sys/bus || exit 1
# The slowest two run in parallel with the rest. Buses and ports, which cost cxl most, are in cxl_links.
cxl list -EMDRi >/tmp/cxl_list 2>/dev/null &
daxctl list -RDi >/tmp/daxctl_list 2>/dev/null &
# A reader that is killed, for want of memory say, must not leave a part that looks whole.
section release; cat /proc/sys/kernel/osrelease || exit 1
section iomem; cat /proc/iomem || exit 1
section dax_links; ls -ld dax/devices/* dax/devices/*/driver dax/drivers/* 2>/dev/null
section dax_values
grep -s . dax/devices/*/size dax/devices/*/resource dax/devices/*/target_node dax/devices/*/align \
    dax/devices/*/mapping*/start dax/devices/*/mapping*/end
section cxl_links
ls -ld cxl/devices/* cxl/devices/*/driver cxl/drivers/* platform/drivers/cxl_acpi \
    pci/drivers/cxl_pci 2>/dev/null
section cxl_values
grep -s . cxl/devices/region*/resource cxl/devices/region*/size cxl/devices/region*/mode \
    cxl/devices/region*/commit cxl/devices/region*/interleave_ways \
    cxl/devices/region*/interleave_granularity \
    cxl/devices/decoder*/start cxl/devices/decoder*/size cxl/devices/decoder*/region \
    cxl/devices/decoder*/target_type cxl/devices/decoder*/interleave_ways
section memory_blocks
cat /sys/devices/system/memory/block_size_bytes
grep -s . /sys/devices/system/memory/memory*/state
section modules; cat /proc/modules || exit 1
wait
section cxl_list; cat /tmp/cxl_list
section daxctl_list; cat /tmp/daxctl_list
section dmesg; dmesg -r || exit 1
section end
