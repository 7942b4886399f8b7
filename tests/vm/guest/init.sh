#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# The guest's init. It starts a small model server and the agent, as an operator would, both without privileges. Then it
# runs what the test says over a virtio port: the test is the administrator of this host, and its attacker.
PATH=/opt/quotary/bin:/usr/sbin:/usr/bin:/sbin:/bin
export PATH HOME=/run PYTHONDONTWRITEBYTECODE=1
busybox mount -t sysfs none /sys
busybox mount -t securityfs none /sys/kernel/security
busybox mount -t tmpfs none /run
busybox mount -t tmpfs none /tmp
mkdir -m 755 /run/quotary && chown quotary:quotary /run/quotary /var/lib/quotary

# IMA's policy "tcb" measures what is executed or mapped, and what root reads. What Python will import is neither, so
# root reads it first; it cannot change afterwards, as the disk is mounted read-only.
find /usr/lib/python3* /opt/quotary -type f '(' -name '*.pyc' -o -name '*.so*' -o -path '/opt/*' ')' \
    -exec cat {} + >/dev/null

# The agent may use the TPM, and read what firmware and kernel logged (docs/howto/operations.md).
chown quotary /dev/tpmrm0
chgrp quotary /sys/kernel/security/tpm0/binary_bios_measurements
chgrp quotary /sys/kernel/security/ima/binary_runtime_measurements

# No function: in the background that would be a process of its own, and "$!" not the one to end.
AS_QUOTARY="chroot --userspec=quotary:quotary --groups=quotary /"
attest() { $AS_QUOTARY python3 -I -m quotary_cli "$@"; }

MODEL=/var/lib/quotary/model.gguf
STATE=/var/lib/quotary/origin

start_engine() {
    $AS_QUOTARY python3 -I /opt/quotary/small_engine.py --model "$MODEL" --port 8080 &
    engine=$!
}

# start_agent: prints the agent's ready line, or nothing where it refuses to start.
# shellcheck disable=SC2120 # a test may give it options
start_agent() {
    rm -f /run/ready && mkfifo /run/ready
    $AS_QUOTARY python3 -I -m quotary_cli agent run --state "$STATE" --tpm device:/dev/tpmrm0 \
        --model "guest=$MODEL" --engine /usr/bin/python3 \
        --upstream http://127.0.0.1:8080 --listen 0.0.0.0:8000 "$@" >/run/ready 2>/dev/ttyS0 &
    agent=$!
    exec 4</run/ready
    ready=
    read -r ready <&4
    printf '%s\n' "$ready"
}

stop_agent() {
    kill -TERM "$agent"
    wait "$agent"
}

stop_engine() {
    kill "$engine"
    wait "$engine" 2>/dev/null
}

port=$(echo /sys/class/virtio-ports/*)
exec 3<>"/dev/${port##*/}"                         # it can be open only once
until read -r _ <&3; do busybox sleep 0.1; done # nobody may hold its other end yet
start_engine
[ -d "$STATE" ] || attest agent init --state "$STATE" --host guest.example --tpm device:/dev/tpmrm0 >/dev/ttyS0 2>&1
# shellcheck disable=SC2119
start_agent >/run/out
wc -c </run/out >/run/err # both programs are measured in every boot
cat /run/out >&3
while read -r command <&3; do
    eval "$command" >/run/out 2>/run/err
    echo "$? $(wc -c </run/out) $(wc -c </run/err)" >&3
    cat /run/out /run/err >&3
done
