#!/usr/bin/env bash
# WireGuard in user space between the two hypervisors.
#   peer-wireguard.sh up|down     (lab.sh up first)
# WG_BIN picks the program (wireguard-go); WG_MTU the MTU (1420: WireGuard's own default).
set -euo pipefail
umask 077
P=${LAB_PREFIX:-pa}
HERE=$(cd "$(dirname "$0")" && pwd)
RUN=${LAB_RUN:-/run/$P-lab}/wireguard
. "$HERE/programs.sh"
down() {
  local i
  stop_all 20
  # its control sockets lie outside the network namespaces
  for i in 1 2; do rm -f "/var/run/wireguard/${P}wg$i.sock"; done
  rm -rf "$RUN"
}
up() {
  local i o
  mkdir -p "$RUN"
  for i in 1 2; do
    (ip netns exec "$P-h$i" "${WG_BIN:-wireguard-go}" -f "${P}wg$i" >"$RUN/h$i.log" 2>&1 & echo $! >"$RUN/h$i.pid")
    wg genkey >"$RUN/h$i.key"
    wg pubkey <"$RUN/h$i.key" >"$RUN/h$i.pub"
  done
  for i in 1 2; do
    o=$((3 - i))
    for _ in $(seq 50); do [ -S "/var/run/wireguard/${P}wg$i.sock" ] && break; sleep 0.1; done
    ip netns exec "$P-h$i" wg set "${P}wg$i" listen-port 51820 private-key "$RUN/h$i.key" \
      peer "$(cat "$RUN/h$o.pub")" endpoint "10.9.0.$o:51820" allowed-ips "10.10.0.$o/32,192.168.$o.0/24"
    ip -n "$P-h$i" addr add "10.10.0.$i/24" dev "${P}wg$i"
    ip -n "$P-h$i" link set "${P}wg$i" mtu "${WG_MTU:-1420}" up
    ip -n "$P-h$i" route replace "192.168.$o.0/24" via "10.10.0.$o" dev "${P}wg$i"
  done
  "$HERE/lab.sh" wait
}
case ${1:-} in up) up ;; down) down ;; *) echo "usage: $0 up|down" >&2; exit 2 ;; esac
