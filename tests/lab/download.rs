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
