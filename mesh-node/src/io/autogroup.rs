//! The rank of this process among the sessions of a host. Where the kernel groups processes by session (sched(7), "The autogroup
//! feature"; most distributions have it on), it shares the processor between sessions first: a thread's niceness then counts
//! within its own session only, and a busy neighbour can keep packet threads of whatever rank from running.

use std::io;

const AUTOGROUP: &str = "/proc/self/autogroup";

/// Gives the session of this process a niceness, if it is its own: a session that was found, such as the shell's by which somebody
/// starts the node by hand, is not ours to change. A service manager makes one for each service. `Ok(false)`: left as it was.
pub fn prioritise(nice: i32) -> io::Result<bool> {
    if !leads(&std::fs::read_to_string("/proc/self/stat")?) {
        return Ok(false);
    }
    match std::fs::write(AUTOGROUP, nice.to_string()) {
        // built without it
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        other => other.map(|()| true),
    }
}

/// Whether the process of a line of `/proc/PID/stat` leads its session.
fn leads(stat: &str) -> bool {
    // the name, in brackets, may hold anything (proc_pid_stat(5))
    let Some((start, rest)) = stat.rsplit_once(')') else { return false };
    let pid = start.split_whitespace().next();
    pid.is_some() && rest.split_whitespace().nth(3) == pid
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_leads_its_session_is_told_whatever_its_name_is() {
        assert!(leads("812 (mesh-node) S 1 812 812 0 -1 4194560 0"));
        assert!(leads("812 (a) b) S 1 812 812 0 -1"));
        assert!(!leads("812 (mesh-node) S 700 812 700 34816 812"), "of a shell's session");
        assert!(!leads("812 (812 812 812 812) S 1 812 700 0"));
        assert!(!leads("") && !leads("812 (mesh-node"));
    }
}
