//! Threads without which the daemon only seems to live. One that panics ends the process: peers then hear nobody, and go elsewhere
//! at once; the service manager starts it anew.

use std::io;
use std::thread::{Builder, JoinHandle};

use super::notices::tell;
use crate::notice::Notice;

/// Starts one.
pub fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    Builder::new().name(name.to_owned()).spawn(move || {
        let _guard = Guard;
        work();
    })
}

struct Guard;

impl Drop for Guard {
    fn drop(&mut self) {
        let thread = std::thread::current();
        if std::thread::panicking() {
            tell(Notice::ThreadDied { thread: thread.name().unwrap_or_default().to_owned() });
            std::process::abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;

    use super::*;

    #[test]
    fn a_panic_ends_the_process_and_an_ordinary_end_does_not() {
        const CHILD: &str = "VITAL_THREAD_OF_A_TEST";
        if std::env::var_os(CHILD).is_some() {
            spawn("quiet", || {}).unwrap().join().unwrap();
            let _ = spawn("broken", || panic!("as a bug would")).unwrap().join();
            std::process::exit(0);
        }
        let name = "io::vital::tests::a_panic_ends_the_process_and_an_ordinary_end_does_not";
        let mut child = std::process::Command::new(std::env::current_exe().unwrap());
        let ended = child.args(["--exact", name, "--nocapture"]).env(CHILD, "1").output().unwrap();
        assert_eq!(ended.status.signal(), Some(6), "SIGABRT: {ended:?}");
    }
}
