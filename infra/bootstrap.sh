#!/bin/sh
# Brings a bare Debian or Ubuntu to the point where Python can go on: OS packages, uv, the locked environment.
# Everything after that is infra/setup. Needs sh, and apt with root only when something is missing.
set -eu
# The api's user must be able to read what is made here, whatever the caller's mask.
umask 022

cd "$(dirname "$0")/.."
cache="${SANDLOT_CACHE_DIR:-/var/lib/sandlot/cache}"

# uv would trust its own list of authorities only; a company's proxy is in the system's.
export UV_SYSTEM_CERTS=1

say() { printf 'setup: %s\n' "$*"; }

fail() {
    printf 'setup: FAILED: %s\n  fix: %s\n' "$1" "$2" >&2
    exit 1
}

missing_packages() {
    packages="ca-certificates debian-archive-keyring erofs-utils iproute2 mmdebstrap nftables procps python3 python3-venv"
    # Ubuntu 22.04's own Python is too old; it carries a newer one beside it.
    [ "${ID:-}-${VERSION_ID:-}" != "ubuntu-22.04" ] || packages="$packages python3.11"
    for package in $packages; do
        [ "$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || printf ' %s' "$package"
    done
}

install_packages() {
    missing=$(missing_packages)
    [ -n "$missing" ] || return 0
    [ "$(id -u)" = 0 ] || fail "missing OS packages:$missing" "run as root once, or: apt-get install$missing"
    say "installing OS packages:$missing"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq || fail "the package lists could not be read" "check the network and /etc/apt/sources.list*, then run again"
    # shellcheck disable=SC2086 # a list of names, to be split
    apt-get install -qq -y -o Dpkg::Use-Pty=0 --no-install-recommends $missing ||
        fail "OS packages could not be installed" "read apt's message above; 'apt-get -f install' repairs a broken state"
}

# Prints what a directory was last made from; empty when it was not finished.
stamp_of() { cat "$1/.made-from" 2>/dev/null || true; }

install_uv() {
    wanted=$(sha256sum <infra/locks/uv.txt)
    [ "$(stamp_of "$cache/uv")" != "$wanted" ] || return 0
    say "installing uv into $cache/uv"
    mkdir -p "$cache" || fail "$cache cannot be made" "run as root, or set SANDLOT_CACHE_DIR to a directory of yours"
    rm -rf "$cache/uv"
    /usr/bin/python3 -m venv "$cache/uv"
    "$cache/uv/bin/pip" install --quiet --disable-pip-version-check --require-hashes -r infra/locks/uv.txt ||
        fail "uv could not be installed from PyPI" "check that pip can reach PyPI (proxy, certificates), then run again"
    printf '%s\n' "$wanted" >"$cache/uv/.made-from"
}

sync_environment() {
    wanted=$(cat requirements.lock pyproject.toml clients/python/pyproject.toml | sha256sum)
    [ "$(stamp_of .venv)" != "$wanted" ] || return 0
    say "making the Python environment .venv from requirements.lock"
    rm -f .venv/.made-from
    uv="$cache/uv/bin/uv"
    [ -x .venv/bin/python ] || "$uv" venv --quiet --python '>=3.11' .venv ||
        fail "no Python 3.11 or newer" "install one (Debian 12 and Ubuntu 24.04 have it), then run again"
    "$uv" pip sync --quiet --require-hashes requirements.lock ||
        fail "the locked Python packages could not be installed" "check that PyPI can be reached (proxy, certificates), then run again"
    "$uv" pip install --quiet --no-deps --no-build-isolation --editable clients/python --editable . ||
        fail "this repository's own packages could not be installed" "read the message above"
    printf '%s\n' "$wanted" >.venv/.made-from
}

[ -r /etc/os-release ] || fail "not a known Linux" "use Debian 12 or later, or Ubuntu 22.04 or later"
# shellcheck disable=SC1091 # a file of the host
. /etc/os-release
command -v dpkg-query >/dev/null || fail "this is not Debian or Ubuntu" "use Debian 12 or later, or Ubuntu 22.04 or later"

install_packages
install_uv
sync_environment
