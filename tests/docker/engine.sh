# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
# A container engine for the tests: the one that runs, or else one of our own, stopped when the tests end.
# Source it after scripts/lib.sh.

ENGINE_DIR=""

# as_root COMMAND...: runs it as root.
as_root() {
    if ((EUID == 0)); then "$@"; else sudo -n "$@"; fi
}

# start_engine: leaves DOCKER_HOST pointing to an engine that answers.
start_engine() {
    need_packages "the tests in a container" "${PACKAGES_DOCKER[@]}"
    if docker version >/dev/null 2>&1; then
        say "using the container engine that runs"
        return
    fi
    ((EUID == 0)) || sudo -n true 2>/dev/null ||
        die "no container engine answers, and this is neither root nor a user with sudo, so none can be started"
    exec {engine_lock}>"$CACHE/docker.lock"
    flock -w 1800 "$engine_lock" || die "another run holds $CACHE/docker.lock"
    # Not in .cache: the path of a unix socket may have 107 bytes, and a clone may lie deep.
    ENGINE_DIR="$(mktemp -d /tmp/quotary-docker.XXXXXX)"
    export DOCKER_HOST="unix://$ENGINE_DIR/docker.sock"
    local driver
    for driver in overlay2 vfs; do
        if _start_dockerd "$driver"; then
            say "started a container engine of our own (storage: $driver)"
            return
        fi
    done
    stop_engine
    tail -n 20 "$CACHE/log/dockerd.log" >&2
    die "the container engine did not start" "its output is in $CACHE/log/dockerd.log"
}

# _start_dockerd DRIVER: true when an engine with that storage driver answers. It gets no network: nothing in it needs one.
_start_dockerd() {
    as_root mkdir -p "$CACHE/docker"
    as_root env PATH="$PATH" dockerd --host "$DOCKER_HOST" --group "$(id -gn)" --data-root "$CACHE/docker/$1" \
        --exec-root "$ENGINE_DIR/exec" --pidfile "$ENGINE_DIR/dockerd.pid" --storage-driver "$1" \
        --iptables=false --ip6tables=false --bridge=none >"$CACHE/log/dockerd.log" 2>&1 </dev/null &
    local starter=$!
    for _ in {1..300}; do
        if docker version >/dev/null 2>&1; then return 0; fi
        kill -0 "$starter" 2>/dev/null || return 1
        sleep 0.1
    done
    _stop_dockerd
    return 1
}

_stop_dockerd() {
    local pid
    pid="$(cat "$ENGINE_DIR/dockerd.pid" 2>/dev/null)" || return 0
    as_root kill "$pid" 2>/dev/null || return 0
    for _ in {1..200}; do
        as_root kill -0 "$pid" 2>/dev/null || return 0
        sleep 0.1
    done
    as_root kill -9 "$pid" 2>/dev/null || true
}

# stop_engine: stops the engine if start_engine started it. Images stay in .cache for the next run.
stop_engine() {
    [[ -n "$ENGINE_DIR" ]] || return 0
    _stop_dockerd
    # Containers without a network leave the mount of their network namespace behind.
    local mount
    while read -r _ mount _; do
        [[ "$mount" != "$ENGINE_DIR"/* ]] || as_root umount -l "$mount"
    done </proc/mounts
    as_root rm -rf "$ENGINE_DIR"
    ENGINE_DIR=""
    unset DOCKER_HOST
}
