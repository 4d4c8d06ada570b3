#!/usr/bin/env bash
# Side by side in one lab: no tunnel, VXLAN, others' tunnels and mesh; interleaved, medians, ratios.
#
#   bench.sh                  writes OUT/bench.json, prints the table
#
#   ROUNDS=3     rounds; each runs every peer once, so that a slow minute of the machine hits all
#   PEERS="plain vxlan nebula wireguard mesh mesh-datagram"   which peer-*.sh; the last is mesh in standard mode
#   PROTOTYPE=B  a program B of the measured prototype: its rows beside the others
#   TESTS="..."  which tests of measure.sh ("all" for every one)
#   SECS=6       seconds of a TCP test
#   OUT          where results go (default: target/bench)
#   NO_BUILD=1   use the programs of MESH_BIN as they are
# Needs root: everything happens in network namespaces of its own (LAB_PREFIX, default "mb").
set -euo pipefail
HERE=$(cd "$(dirname "$0")" && pwd)
ROOT=$(cd "$HERE/../.." && pwd)
ROUNDS=${ROUNDS:-3}
PEERS=${PEERS:-plain vxlan nebula wireguard mesh mesh-datagram${PROTOTYPE:+ prototype}}
TESTS=${TESTS:-slowping tcp1 tcp1r tcp4 tcp4r udp1200 udp64 rate1200 rate64 loadping sparsebulk sparseflood}
SECS=${SECS:-6}
TARGET=${CARGO_TARGET_DIR:-$ROOT/target}
OUT=${OUT:-$TARGET/bench}
export LAB_PREFIX=${LAB_PREFIX:-mb}
export LAB_RUN=${LAB_RUN:-/run/$LAB_PREFIX-lab}
export MESH_BIN=${MESH_BIN:-$TARGET/release}

[ "$(id -u)" = 0 ] || { echo "run as root: the lab needs network namespaces" >&2; exit 2; }

install_missing() {
  local want=() pair
  for pair in iperf3:iperf3 jq:jq ethtool:ethtool ip:iproute2 ping:iputils-ping nft:nftables column:bsdextrautils \
              "${NEBULA_BIN:-nebula}:nebula" "${WG_BIN:-wireguard-go}:wireguard-go" wg:wireguard-tools; do
    case ${pair##*:} in
      nebula) [[ " $PEERS " == *" nebula "* ]] || continue ;;
      wireguard-*) [[ " $PEERS " == *" wireguard "* ]] || continue ;;
    esac
    command -v "${pair%%:*}" >/dev/null || want+=("${pair##*:}")
  done
  [ ${#want[@]} = 0 ] && return
  echo "installing ${want[*]}" >&2
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq >/dev/null || true
  apt-get install -qq -y --no-install-recommends "${want[@]}" >/dev/null
}

PEER=
cleanup() {
  [ -n "$PEER" ] && "$HERE/peer-$PEER.sh" down || true
  "$HERE/lab.sh" down || true
}
trap cleanup EXIT
trap 'exit 130' INT TERM

install_missing
if [ -z "${NO_BUILD:-}" ]; then
  (cd "$ROOT" && cargo build --release --locked -p mesh-node -p mesh-ctl -p mesh-benches --bins)
fi
mkdir -p "$OUT"
: >"$OUT/measurements.jsonl"

for round in $(seq "$ROUNDS"); do
  for PEER in $PEERS; do
    echo "round $round/$ROUNDS: $PEER" >&2
    # A fresh lab for each: nothing that one peer leaves behind can help or hurt the next.
    "$HERE/lab.sh" up
    "$HERE/peer-$PEER.sh" up
    # shellcheck disable=SC2086
    "$HERE/measure.sh" --name "$PEER" --secs "$SECS" path $TESTS mem |
      jq -c --arg p "$PEER" --argjson r "$round" '{peer: $p, round: $r, result: .}' >>"$OUT/measurements.jsonl"
    "$HERE/peer-$PEER.sh" down
    PEER=
    "$HERE/lab.sh" down
  done
done

rev=$(git -C "$ROOT" rev-parse --short HEAD 2>/dev/null || echo unknown)
jq -s -f "$HERE/table.jq" "$OUT/measurements.jsonl" >"$OUT/rows.json"
jq -n --slurpfile rows "$OUT/rows.json" --slurpfile raw "$OUT/measurements.jsonl" \
  --arg at "$(date -u +%FT%TZ)" --arg rev "$rev" --arg kernel "$(uname -r)" --argjson cpus "$(nproc)" \
  --arg cpu "$(awk -F': ' '/^model name/{print $2; exit}' /proc/cpuinfo)" \
  --arg nebula "$("${NEBULA_BIN:-nebula}" -version 2>/dev/null || true)" --argjson rounds "$ROUNDS" \
  '{schema: 1, at: $at, revision: $rev, machine: {cpu: $cpu, cpus: $cpus, kernel: $kernel},
    nebula: $nebula, rounds: $rounds, rows: $rows[0], measurements: $raw}' >"$OUT/bench.json"

echo
echo "medians of $ROUNDS rounds; \"x nebula\", \"x prototype\": above 1 mesh is better, whichever way the figure counts;"
echo "\"datagram x nebula\": the same for mesh in standard mode"
jq -r '
  def show: if . == null then "-" elif . >= 100 then (. | round | tostring) else (. * 100 | round / 100 | tostring) end;
  (.rows[0].median | keys_unsorted) as $have
  | (["plain", "vxlan", "nebula", "wireguard", "prototype", "mesh-datagram", "mesh"] | map(select(. as $p | $have | index($p)))) as $known
  | ($known + ($have - $known)) as $peers
  | (["metric"] + $peers + ["x nebula", "datagram x nebula", "x prototype"]),
    (.rows[] | . as $row | [.metric] + ($peers | map($row.median[.] | show)) + [(.against_nebula, .datagram_against_nebula, .against_prototype) | show])
  | @tsv' "$OUT/bench.json" | column -t -s "$(printf '\t')"
echo
echo "all figures: $OUT/bench.json"
