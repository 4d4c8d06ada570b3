//! Sysctls, written below `/proc/sys` and restored. What was there before is on disk before the first write, so that a
//! killed run's changes can be undone by the next one.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use super::HostError;
use crate::control::host::sysctls::Sysctl;
use crate::io::notices::tell;
use crate::notice::Notice;

/// A value of ours and what it replaced.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
struct Saved {
    /// What we wrote, and where.
    ours: Sysctl,
    /// What was there.
    before: String,
}

/// The sysctls changed by us.
#[derive(Debug)]
pub(super) struct Sysctls {
    file: PathBuf,
    saved: Vec<Saved>,
}

fn location(path: &[String]) -> PathBuf {
    // A part with a slash cannot be an interface's name; it must not lead elsewhere.
    path.iter().fold(PathBuf::from("/proc/sys"), |at, part| at.join(part.replace('/', "_")))
}

fn read(path: &[String]) -> io::Result<String> {
    fs::read_to_string(location(path)).map(|text| text.trim().to_owned())
}

fn write(path: &[String], value: &str) -> Result<(), HostError> {
    fs::write(location(path), value)
        .map_err(|e| HostError::Sysctl { path: location(path), why: format!("write {value}: {e}") })
}

/// The value of a sysctl; `None` where it or its device is not there.
pub(super) fn value(path: &[&str]) -> Option<String> {
    read(&path.iter().map(|part| (*part).to_owned()).collect::<Vec<_>>()).ok()
}

/// Keeps the kernel from giving a TUN a link-local address and from soliciting routers on it. Where there is no IPv6
/// there is nothing to keep it from. To be done before the device comes up; it goes with the device.
pub(super) fn no_link_local(device: &str) {
    let path = ["net", "ipv6", "conf", device, "addr_gen_mode"].map(str::to_owned);
    if let Err(error) = write(&path, "1") {
        tracing::debug!(%error, "no IPv6 on the device");
    }
}

impl Sysctls {
    /// Reads what an earlier run left. A file that cannot be understood is reported and set aside.
    pub(super) fn open(state_dir: &Path) -> Result<Self, HostError> {
        let file = state_dir.join("sysctl.json");
        let saved = match fs::read(&file) {
            Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_else(|error| {
                let (path, error) = (file.display().to_string(), error.to_string());
                tell(Notice::SysctlsDamaged { path, error });
                let _ = fs::rename(&file, file.with_extension("json.bad"));
                Vec::new()
            }),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(e) => return Err(HostError::State { path: file, why: e.to_string() }),
        };
        Ok(Self { file, saved })
    }

    /// Whether this one's value was the user's before us, so that what it allows is not ours to close.
    pub(super) fn was_set(&self, sysctl: &Sysctl) -> bool {
        match self.saved.iter().find(|saved| saved.ours.path == sysctl.path) {
            Some(saved) => saved.before == sysctl.value,
            None => read(&sysctl.path).is_ok_and(|value| value == sysctl.value),
        }
    }

    /// Whether one is changed that is not among these.
    pub(super) fn unwanted(&self, wanted: &BTreeSet<Sysctl>) -> bool {
        self.saved.iter().any(|saved| !wanted.contains(&saved.ours))
    }

    /// Gives each its value; tells which had lost the one we gave. Those whose device is not there are left for later.
    pub(super) fn set<'a>(
        &mut self,
        wanted: impl Iterator<Item = &'a Sysctl>,
    ) -> Result<Vec<String>, HostError> {
        let (mut write_now, mut repaired) = (Vec::new(), Vec::new());
        for sysctl in wanted {
            let Ok(before) = read(&sysctl.path) else { continue };
            if before == sysctl.value || sysctl.yields_to(&before) {
                continue;
            }
            if self.saved.iter().any(|saved| saved.ours == *sysctl) {
                repaired.push(format!("sysctl {} was {before}", sysctl.path.join("/")));
            } else {
                self.saved.push(Saved { ours: sysctl.clone(), before });
            }
            write_now.push(sysctl);
        }
        if write_now.len() > repaired.len() {
            self.store()?;
        }
        write_now.iter().try_for_each(|sysctl| write(&sysctl.path, &sysctl.value))?;
        Ok(repaired)
    }

    /// Gives back what `which` chooses: where the value is still ours. Tells what was given back.
    pub(super) fn restore(&mut self, which: impl Fn(&Sysctl) -> bool) -> Result<Vec<String>, HostError> {
        let (chosen, kept): (Vec<Saved>, Vec<Saved>) =
            self.saved.drain(..).partition(|saved| which(&saved.ours));
        let mut restored = Vec::new();
        self.saved = kept;
        let mut failed = None;
        for saved in chosen {
            // A device that went took its values with it.
            if !read(&saved.ours.path).is_ok_and(|value| value == saved.ours.value) {
                continue;
            }
            match write(&saved.ours.path, &saved.before) {
                Ok(()) => {
                    restored.push(format!("sysctl {} back to {}", saved.ours.path.join("/"), saved.before))
                }
                Err(error) => {
                    self.saved.push(saved);
                    failed = Some(error);
                }
            }
        }
        self.store()?;
        failed.map_or(Ok(restored), Err)
    }

    fn store(&self) -> Result<(), HostError> {
        let failed = |e: io::Error| HostError::State { path: self.file.clone(), why: e.to_string() };
        if self.saved.is_empty() {
            return match fs::remove_file(&self.file) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => Err(failed(e)),
                _ => Ok(()),
            };
        }
        let bytes = serde_json::to_vec_pretty(&self.saved).map_err(|e| failed(e.into()))?;
        let new = self.file.with_extension("json.new");
        let mut file = fs::File::create(&new).map_err(failed)?;
        file.write_all(&bytes).and_then(|()| file.sync_all()).map_err(failed)?;
        fs::rename(&new, &self.file).map_err(failed)?;
        // The new name, too, has to outlive a power cut.
        let directory = self.file.parent().map(fs::File::open);
        directory.map_or(Ok(()), |opened| opened.and_then(|d| d.sync_all())).map_err(failed)
    }
}
