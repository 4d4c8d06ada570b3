//! A download from the lab's Internet that goes on while something is done to its way.

use crate::Lab;
use crate::world::WEB4;

impl Lab {
    /// Fetches so many bytes at a bounded pace in the background; their sum, and then "done", end up in the file, what curl has to say
    /// in another beside it (`.err`).
    pub fn download(&mut self, vm: &str, file: &str, bytes: u64, pace: &str) {
        let path = self.dir().join(file);
        let script = format!(
            "curl -sS --noproxy '*' -m 60 --limit-rate {pace} http://{WEB4}/bytes/{bytes} 2>{0}.err | sha256sum >{0}; echo done >>{0}",
            path.display()
        );
        self.spawn(vm, &["sh", "-c", &script]).expect("a shell in a VM");
    }

    /// Runs the lab's tool in a VM in the background; what it says ends up in the file.
    pub fn tool(&mut self, vm: &str, file: &str, line: &str) {
        let program = crate::node::tool().expect("the lab's tool is built");
        let path = self.dir().join(file);
        let script = format!("exec {} {line} >{} 2>&1", program.display(), path.display());
        self.spawn(vm, &["sh", "-c", &script]).expect("a shell in a VM");
    }

    /// Milliseconds of the longest gap that the tool's `echo` tells of in a file; `None`: it has not ended.
    pub fn longest_gap(&self, file: &str) -> Option<f64> {
        self.output(file).split_once("longest gap ")?.1.split(' ').next()?.parse().ok()
    }

    /// What a background tool of the lab has put in its file so far.
    pub fn output(&self, file: &str) -> String {
        std::fs::read_to_string(self.dir().join(file)).unwrap_or_default()
    }

    /// The sum of a whole download.
    pub fn sum_of(&self, bytes: u64) -> String {
        let script = format!("head -c {bytes} /dev/zero | tr '\\0' x | sha256sum");
        let made = self.sh("inet", &script).expect("a shell in the lab's Internet");
        made.stdout.split_whitespace().next().unwrap_or_default().to_owned()
    }
}
