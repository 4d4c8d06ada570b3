#!/usr/bin/env bash
# A prototype of the data path with fixed keys between the two hypervisors: the yardstick, where its program is at hand.
#   peer-prototype.sh up|down     (lab.sh up first)
# PROTOTYPE is the program; it takes id=, local=, peer= and its options, and makes the device tb0.
set -euo pipefail
umask 077
P=${LAB_PREFIX:-pa}
HERE=$(cd "$(dirname "$0")" && pwd)
RUN=${LAB_RUN:-/run/$P-lab}/prototype
. "$HERE/programs.sh"
down() {
  stop_all 20
  rm -rf "$RUN"
}
up() {
  local i o
  mkdir -p "$RUN"
  for i in 1 2; do
    o=$((3 - i))
    (ip netns exec "$P-h$i" nice -n -10 "${PROTOTYPE:?the program}" "id=$i" "local=10.9.0.$i:4433" "peer=10.9.0.$o:4433" \
      "${PROTOTYPE_OPTIONS:-md=100,rcv=786432,txbytes=200000}" >"$RUN/h$i.log" 2>&1 & echo $! >"$RUN/h$i.pid")
  done
  sleep 0.3
  for i in 1 2; do
    o=$((3 - i))
    ip -n "$P-h$i" link set tb0 mtu 1436 txqueuelen 500 up
    ip -n "$P-h$i" route replace "192.168.$o.0/24" dev tb0
  done
  "$HERE/lab.sh" wait
}
case ${1:-} in up) up ;; down) down ;; *) echo "usage: $0 up|down" >&2; exit 2 ;; esac
