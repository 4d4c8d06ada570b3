#!/usr/bin/env bash
# Installs what the lab and its tests call, on Debian and its relatives; does nothing where all is there.
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
    need nebula nebula # what the benchmarks compare with
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
