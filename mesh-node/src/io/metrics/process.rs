//! What every Prometheus client tells of its process; proc(5).

use std::fs;

use prometheus::proto::MetricFamily;

use super::families::{alone, counter, gauge};

/// Unit of times in /proc/PID/stat: USER_HZ, which the kernel keeps at this on every architecture we run on.
const TICKS_PER_SECOND: f64 = 100.0;

pub(super) fn families() -> Vec<MetricFamily> {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let boot = fs::read_to_string("/proc/stat").unwrap_or_default();
    let started = boot_time(&boot).zip(start_ticks(&stat)).map(|(boot, ticks)| boot + ticks);
    let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let open = fs::read_dir("/proc/self/fd").map(|entries| entries.count() as f64).ok();
    let told = [
        cpu_seconds(&stat).map(|v| {
            counter("process_cpu_seconds_total", "User and system CPU time spent in seconds.", alone(v))
        }),
        status_bytes(&status, "VmSize:")
            .map(|v| gauge("process_virtual_memory_bytes", "Virtual memory size in bytes.", alone(v))),
        status_bytes(&status, "VmRSS:")
            .map(|v| gauge("process_resident_memory_bytes", "Resident memory size in bytes.", alone(v))),
        open.map(|v| gauge("process_open_fds", "Number of open file descriptors.", alone(v))),
        max_fds(&limits)
            .map(|v| gauge("process_max_fds", "Maximum number of open file descriptors.", alone(v))),
        started.map(|v| {
            let help = "Start time of the process since unix epoch in seconds.";
            gauge("process_start_time_seconds", help, alone(v))
        }),
    ];
    told.into_iter().flatten().collect()
}

/// Field `number` of /proc/PID/stat, from 3 on. The second, the command, may hold blanks and parentheses.
fn field(stat: &str, number: usize) -> Option<f64> {
    let (_, behind) = stat.rsplit_once(')')?;
    behind.split_ascii_whitespace().nth(number.checked_sub(3)?)?.parse().ok()
}

pub(super) fn cpu_seconds(stat: &str) -> Option<f64> {
    Some((field(stat, 14)? + field(stat, 15)?) / TICKS_PER_SECOND)
}

pub(super) fn start_ticks(stat: &str) -> Option<f64> {
    Some(field(stat, 22)? / TICKS_PER_SECOND)
}

pub(super) fn status_bytes(status: &str, key: &str) -> Option<f64> {
    let kib = status.lines().find_map(|line| line.strip_prefix(key))?;
    Some(kib.trim().strip_suffix("kB")?.trim().parse::<f64>().ok()? * 1024.0)
}

/// The soft limit; `None` without one.
pub(super) fn max_fds(limits: &str) -> Option<f64> {
    limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))?
        .split_whitespace()
        .next()?
        .parse()
        .ok()
}

pub(super) fn boot_time(stat: &str) -> Option<f64> {
    stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}
