#!/bin/sh
# /init of the initramfs: modules, mounts, and over to the root disk.  As much as possible is done here, because under
# emulation each start of a dynamically linked program costs 50 ms.
b=/bin/busybox
$b mount -t proc proc /proc
$b mount -t sysfs sys /sys
$b mount -t devtmpfs dev /dev
$b xargs -n 1 $b insmod </boot-modules 2>/dev/null
n=0
until [ -b /dev/vda ] && [ -b /dev/vdb ]; do
	n=$((n + 1))
	[ $n -gt 1000 ] && { echo "vm: no disks"; $b poweroff -f; }
	$b usleep 10000
done
$b mount -t ext4 -o noatime,nobarrier /dev/vda /new || { echo "vm: no root"; $b poweroff -f; }
$b mount -t ext4 -o noatime,nobarrier /dev/vdb /new/host || { echo "vm: no payload"; $b poweroff -f; }
$b mkdir -p /new/usr/lib/modules
$b mount -t tmpfs tmpfs /new/usr/lib/modules
$b cp -a /lib/modules/. /new/usr/lib/modules/
$b cp -a /new/host/overlay/. /new/
$b ip link set lo up
$b hostname vm
read -r cmdline </proc/cmdline
init=/host/init
for word in $cmdline; do
	case $word in
	vm.init=*) init=${word#vm.init=} ;;
	esac
done
for d in dev proc sys; do $b mount --move /$d /new/$d; done
echo "vm: init"
exec $b switch_root /new $init
