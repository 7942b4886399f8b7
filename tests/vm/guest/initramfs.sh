#!/bin/busybox sh
# SPDX-License-Identifier: Apache-2.0
# First program of the guest, in its initramfs (measured as a whole into PCR 9): loads drivers, mounts root and state.
set -e
/bin/busybox mount -t devtmpfs none /dev
/bin/busybox mount -t proc none /proc
while read -r module; do /bin/busybox insmod "/modules/$module"; done </modules/order
/bin/busybox ifconfig lo 127.0.0.1 up
/bin/busybox ifconfig eth0 10.0.2.15 netmask 255.255.255.0 up
/bin/busybox mount -t ext4 -o ro /dev/vdb /system
/bin/busybox mount -t ext4 -o noatime /dev/vdc /system/var/lib/quotary
/bin/busybox mount --move /dev /system/dev
/bin/busybox mount --move /proc /system/proc
exec /bin/busybox switch_root /system /sbin/init
