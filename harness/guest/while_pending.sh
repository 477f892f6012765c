#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# Runs command lines while the kernel's deferred work is held up: what they queue stays pending.
# $1 is a word that nothing else can know, each other argument a command line. After each line stands
# its status, and at the end whether a worker has run all the same.
#
# Work can be queued to any CPU. On each one a realtime program that never sleeps uses the time that the
# command lines leave, which have a higher realtime priority: no worker can run, whether of a per-CPU or
# an unbound workqueue. The kernel lets others run after nearly a second (sched_rt_runtime_us, and the
# deadline server since 6.8).
token=$1
shift
workers() { grep -ls '^kworker/' /proc/[0-9]*/comm | sed 's:comm$:status:'; }
switches() { grep -Hs ctxt $(workers); }
chrt -f -p 2 $$ || exit 1
busy=
for cpu in /sys/devices/system/cpu/cpu[0-9]*; do
    mask=$(printf %x $((1 << ${cpu##*cpu})))
    # A command line that waits for the work goes on once these have had their time.
    taskset "$mask" chrt -f 1 sh -c 'ulimit -t 4; while :; do :; done' &
    busy="$busy $!"
done
usleep 50000
first=$(switches)
for line; do
    eval "$line"
    echo "$token $?"
done
last=$(switches)
kill $busy 2>/dev/null
if [ -n "$first" ] && [ "$first" = "$last" ]; then
    echo "$token held"
else
    echo "$token not held"
fi
