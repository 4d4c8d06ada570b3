#!/usr/bin/env bash
# Installs what the lab and its tests call, on Debian and its relatives; does nothing where all is there.
#   deps.sh          what `make demo` and `make lab` need
#   deps.sh test     and what `make test` needs besides
#   deps.sh bench    and what `make bench` needs besides
set -euo pipefail

export PATH="$PATH:/usr/sbin:/sbin"
missing=()
need() { # command package
    command -v "$1" >/dev/null 2>&1 || missing+=("$2")
}
need nft nftables
need ip iproute2
need ping iputils-ping
need traceroute traceroute
need iperf3 iperf3
need tcpdump tcpdump
need jq jq
need ethtool ethtool
need curl curl
need conntrack conntrack
need sysctl procps
need cc build-essential
if [ "${1:-}" = bench ]; then
    # what the benchmarks compare with
    need nebula nebula
    need wireguard-go wireguard-go
    need wg wireguard-tools
    need column bsdextrautils
fi

# Prometheus is unpacked into the target directory, not installed: the package would start a service on this machine.
fetch_prometheus() {
    if command -v prometheus >/dev/null 2>&1 && command -v promtool >/dev/null 2>&1; then
        return
    fi
    local target tools
    target="${CARGO_TARGET_DIR:-$(cd "$(dirname "$0")/.." && pwd)/target}"
    tools="$target/tools/prometheus"
    if [ -x "$tools/usr/bin/prometheus" ] && [ -x "$tools/usr/bin/promtool" ]; then
        return
    fi
    # whole or not at all: what was stopped half-way is not taken for the programs
    local new="$tools.new"
    rm -rf "$tools" "$new"
    mkdir -p "$new"
    download() { (cd "$new" && apt-get -o APT::Sandbox::User=root download -qq prometheus); }
    # the list of packages may be absent (a fresh container), or name a version that is gone
    if ! download; then
        if [ "$(id -u)" -ne 0 ]; then
            echo "prometheus cannot be downloaded: run \`apt-get update\` as root, or install prometheus" >&2
            exit 1
        fi
        apt-get update -qq
        if ! download; then
            echo "prometheus cannot be downloaded: is the mirror of this machine's packages reachable? or install prometheus" >&2
            exit 1
        fi
    fi
    dpkg-deb -x "$new"/prometheus_*.deb "$new"
    rm "$new"/prometheus_*.deb
    mv "$new" "$tools"
}
if [ "${1:-}" = test ]; then
    fetch_prometheus
fi

if [ "${#missing[@]}" -eq 0 ]; then
    exit 0
fi
if [ "$(id -u)" -ne 0 ]; then
    echo "missing: ${missing[*]}; run as root, or install them" >&2
    exit 1
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends "${missing[@]}" </dev/null
