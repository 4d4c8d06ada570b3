# Input: the array of all measurements ({peer, round, result}). Output: medians as rows, and ratios against nebula.
# `better` says which way is good; a ratio above 1 always means that mesh is better.
def median: map(select(. != null and (type == "number"))) | sort
  | if length == 0 then null elif length % 2 == 1 then .[length / 2 | floor]
    else (.[length / 2 - 1] + .[length / 2]) / 2 end;
def metrics: [
  ["TCP, 1 stream, Gb/s",             "more", "tcp1",     "gbps"],
  ["TCP, 1 stream, reverse, Gb/s",    "more", "tcp1r",    "gbps"],
  ["TCP, 4 streams, Gb/s",            "more", "tcp4",     "gbps"],
  ["TCP, 4 streams, reverse, Gb/s",   "more", "tcp4r",    "gbps"],
  ["daemons' CPU, 1 stream, s/GB",    "less", "tcp1",     "daemon_cpu_s_per_gb"],
  ["the machine's CPU, 1 stream, s/GB","less", "tcp1",    "machine_cpu_s_per_gb"],
  ["UDP 1200 B flood, kpps",          "more", "udp1200",  "got_kpps"],
  ["UDP 64 B flood, kpps",            "more", "udp64",    "got_kpps"],
  ["daemons' CPU, 64 B flood, us/pkt","less", "udp64",    "daemon_cpu_us_per_pkt"],
  ["UDP 1200 B, < 1 % loss, kpps",    "more", "rate1200", "got_kpps"],
  ["UDP 64 B, < 1 % loss, kpps",      "more", "rate64",   "got_kpps"],
  ["daemons' CPU, 64 B paced, us/pkt","less", "rate64",   "daemon_cpu_us_per_pkt"],
  ["ping 2 ms apart, p50, us",        "less", "ping",     "p50"],
  ["ping 20 ms apart, p50, us",       "less", "slowping", "p50"],
  ["ping under 1 stream, p50, us",    "less", "loadping", "p50"],
  ["ping under 1 stream, p99, us",    "less", "loadping", "p99"],
  ["50 pps beside 4 streams, p99, us","less", "sparsebulk","p99"],
  ["50 pps beside 4 streams, lost",   "less", "sparsebulk","lost"],
  ["50 pps in a 64 B flood, p99, us", "less", "sparseflood","p99"],
  ["50 pps in a 64 B flood, lost",    "less", "sparseflood","lost"],
  ["resident memory, daemons, MB",    "less", "mem",      "rss_mb"]
];
map(.result.mem |= {rss_mb: (map(.rss_mb) | add)}) as $all
| ($all | map(.peer) | unique) as $peers
| [ metrics[] as [$what, $better, $test, $field]
    | { metric: $what, better: $better, test: $test, field: $field,
        median: ($peers | map({ (.): (. as $p | $all | map(select(.peer == $p) | .result[$test][$field]?) | median) }) | add),
        spread: ($peers | map({ (.): (. as $p | $all | map(select(.peer == $p) | .result[$test][$field]? | numbers)
                   | if length == 0 then null else [min, max] end) }) | add) }
    | select(.median | any(.[]; . != null))
    | def ratio($of; $to): [.median[$of], .median[$to]] as [$a, $b]
        | if ($a // 0) == 0 or ($b // 0) == 0 then null elif $better == "more" then $a / $b else $b / $a end;
      .against_nebula = ratio("mesh"; "nebula")
    | .datagram_against_nebula = ratio("mesh-datagram"; "nebula")
    | .against_prototype = ratio("mesh"; "prototype") ]
