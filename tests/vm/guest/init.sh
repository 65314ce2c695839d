#!/bin/sh
# PID 1 where no systemd is wanted: the other mounts, then the agent, which powers off.
exec </dev/null >/dev/console 2>&1
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /tmp
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
ln -s /proc/self/fd /dev/fd
mount -t cgroup2 cgroup /sys/fs/cgroup
. /host/environment
python3 -E -S /host/agent.py
sleep 60
