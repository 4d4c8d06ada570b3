#!/bin/sh
# Boots systemd over a throw-away copy of this machine's files, in the namespaces it is started in, with deploy/ installed as
# deploy/README.md says. Arguments: deploy directory, directory with mesh-node and mesh-ctl, directory with the node's files
# (ca.pem, node.pem, node.key, node.toml), a directory to mount on. Needs namespaces of its own: mounts, processes, cgroups.
set -eu
deploy=$1 programs=$2 files=$3 at=$4

mount --make-rprivate /
mount -t tmpfs none "$at"
mkdir "$at/upper" "$at/work" "$at/root"
mount -t overlay -o "lowerdir=/,upperdir=$at/upper,workdir=$at/work" none "$at/root"
cd "$at/root"

mount -t proc proc proc
mount -t sysfs sysfs sys
mount -t cgroup2 none sys/fs/cgroup
mount -t tmpfs -o mode=0755 none run
mount -t tmpfs -o mode=1777 none tmp
mount -t tmpfs -o mode=0755 none dev
while read -r name major minor; do mknod -m 0666 "dev/$name" c "$major" "$minor"; done <<DEVICES
null 1 3
zero 1 5
full 1 7
random 1 8
urandom 1 9
tty 5 0
DEVICES
mkdir dev/net dev/pts dev/shm
mknod -m 0666 dev/net/tun c 10 200
mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
# what belongs to the whole machine stays as it is
for shared in fs kernel vm; do
    mount --bind "proc/sys/$shared" "proc/sys/$shared"
    mount -o remount,bind,ro "proc/sys/$shared"
done

# nothing of the machine's own services starts
rm -rf lib/systemd/system/*.wants usr/lib/systemd/system/*.wants etc/systemd/system/*
mkdir -p etc/mesh usr/local/bin usr/lib/sysusers.d etc/systemd/system
cp "$programs/mesh-node" "$programs/mesh-ctl" usr/local/bin/
cp "$deploy/mesh.sysusers.conf" usr/lib/sysusers.d/mesh.conf
cp "$deploy/mesh-node.service" etc/systemd/system/
printf '[Unit]\nRequires=basic.target\nAfter=basic.target\n' >etc/systemd/system/lab.target
cp "$files/ca.pem" "$files/node.pem" "$files/node.key" "$files/node.toml" etc/mesh/
chroot . systemd-sysusers
chroot . chown mesh:mesh /etc/mesh/node.key

mkdir -p old
pivot_root . old
umount -l old
exec chroot . /usr/bin/env -i container=lab PATH=/usr/sbin:/usr/bin:/sbin:/bin \
    /lib/systemd/systemd --system --unit=lab.target --log-target=console --show-status=no
