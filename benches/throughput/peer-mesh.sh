#!/usr/bin/env bash
# mesh-node between the two hypervisors of lab.sh; both VM subnets are routed as they are.
#   peer-mesh.sh up|down     (lab.sh up first)
# MESH_BIN is the directory of mesh-node and mesh-ctl (default: ../../target/release).
# MESH_TRANSPORT sets `transport` and MESH_WORKERS `workers` (default: the daemon's own choice); MESH_LOG its filter.
set -euo pipefail
umask 077
P=${LAB_PREFIX:-pa}
HERE=$(cd "$(dirname "$0")" && pwd)
RUN=${LAB_RUN:-/run/$P-lab}/mesh
. "$HERE/programs.sh"
BIN=${MESH_BIN:-$HERE/../../target/release}

down() {
  stop_all 110 # a stop takes at most 10 s
  rm -rf "$RUN"
}

up() {
  local i o transport=
  [ -n "${MESH_TRANSPORT:-}" ] && transport="transport      = \"$MESH_TRANSPORT\""
  [ -n "${MESH_WORKERS:-}" ] && transport+=$'\n'"workers        = $MESH_WORKERS"
  rm -rf "$RUN"; mkdir -p "$RUN"
  "$BIN/mesh-ctl" ca init --name lab --dir "$RUN" >/dev/null
  for i in 1 2; do
    o=$((3 - i))
    "$BIN/mesh-ctl" ca issue "h$i" --prefix "192.168.$i.0/24" --dir "$RUN" >/dev/null
    mkdir -p "$RUN/h$i.state"
    cat >"$RUN/h$i.toml" <<T
[node]
listen         = "10.9.0.$i:4650"
metrics        = "off"
ca             = "$RUN/ca.pem"
certificate    = "$RUN/h$i.pem"
key            = "$RUN/h$i.key"
state_dir      = "$RUN/h$i.state"
control_socket = "$RUN/h$i.sock"
$transport

[[peer]]
endpoint = "10.9.0.$o:4650"

[[network]]
name      = "default"
interface = "br0"
subnet    = "192.168.$i.0/24"
T
    (RUST_LOG=${MESH_LOG:-info} ip netns exec "$P-h$i" "$BIN/mesh-node" run --config "$RUN/h$i.toml" \
      >"$RUN/h$i.log" 2>&1 & echo $! >"$RUN/h$i.pid")
  done
  if ! "$HERE/lab.sh" wait; then
    for i in 1 2; do
      echo "== h$i" >&2
      tail -n 20 "$RUN/h$i.log" >&2
      "$BIN/mesh-ctl" --socket "$RUN/h$i.sock" status >&2 || true
    done
    return 1
  fi
}
case ${1:-} in up) up ;; down) down ;; *) echo "usage: $0 up|down" >&2; exit 2 ;; esac
