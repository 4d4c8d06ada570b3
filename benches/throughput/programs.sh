# Sourced by the peer-*.sh whose tunnel is a program of its own: what was started, by its pid in $RUN/h1.pid and h2.pid.
signal_all() {
  local f
  for f in "$RUN"/h?.pid; do [ -e "$f" ] && kill "-$1" "$(cat "$f")" 2>/dev/null || true; done
}

# stop_all TENTHS: asks all to stop, and kills whoever is left then.
stop_all() {
  local i f
  signal_all TERM
  for i in $(seq "$1"); do
    for f in "$RUN"/h?.pid; do [ -e "$f" ] && kill -0 "$(cat "$f")" 2>/dev/null && sleep 0.1 && continue 2; done
    break
  done
  signal_all KILL
}
