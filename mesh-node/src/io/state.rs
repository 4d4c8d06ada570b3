//! State on disk: peers added at run time, known records. Written whole, beside the old file, then renamed.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context;
use mesh_proto::record::SignedRecord;
use serde::{Deserialize, Serialize};

use crate::control::event::{Saved, SavedPost};

#[derive(Default, Serialize, Deserialize)]
struct PeersFile {
    peers: Vec<String>,
    #[serde(default)]
    removed: Vec<mesh_proto::NodeId>,
    #[serde(default)]
    egress_used: BTreeMap<mesh_proto::NetworkName, mesh_proto::NodeId>,
    #[serde(default)]
    egress_drained: bool,
    #[serde(default)]
    egress_elected: Vec<SavedPost>,
}

fn peers_path(dir: &Path) -> PathBuf {
    dir.join("peers.json")
}

fn records_path(dir: &Path) -> PathBuf {
    dir.join("records.bin")
}

/// Reads what is there. A damaged file is reported and set aside, not a reason to stay down.
pub fn load(dir: &Path) -> (Saved, Vec<String>) {
    let mut complaints = Vec::new();
    let mut aside = |path: &Path, error: String| {
        let kept = path.with_extension("damaged");
        let _ = std::fs::rename(path, &kept);
        complaints.push(format!("{}: {error}; kept as {}", path.display(), kept.display()));
    };
    let mut saved = Saved::default();
    let path = peers_path(dir);
    match std::fs::read(&path).map(|bytes| serde_json::from_slice::<PeersFile>(&bytes)) {
        Ok(Ok(file)) => {
            saved.peers = file.peers;
            saved.removed = file.removed;
            saved.egress_used = file.egress_used;
            saved.egress_drained = file.egress_drained;
            saved.egress_elected = file.egress_elected;
        }
        Ok(Err(error)) => aside(&path, error.to_string()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => aside(&path, error.to_string()),
    }
    let path = records_path(dir);
    match std::fs::read(&path) {
        Ok(bytes) => match read_records(&bytes) {
            Ok(records) => saved.records = records,
            Err(error) => aside(&path, error),
        },
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => aside(&path, error.to_string()),
    }
    (saved, complaints)
}

/// A record each, with its length in front: so many records may be more than one message may hold.
fn read_records(mut bytes: &[u8]) -> Result<Vec<SignedRecord>, String> {
    let mut records = Vec::new();
    while let Some((len, rest)) = bytes.split_first_chunk::<4>() {
        let len = u32::from_be_bytes(*len) as usize;
        let (body, rest) = rest.split_at_checked(len).ok_or("file ends within a record")?;
        records.push(mesh_proto::codec::decode(body).map_err(|e| e.to_string())?);
        bytes = rest;
    }
    Ok(records)
}

/// Writes it.
pub fn store(dir: &Path, saved: &Saved) -> anyhow::Result<()> {
    let file = PeersFile {
        peers: saved.peers.clone(),
        removed: saved.removed.clone(),
        egress_used: saved.egress_used.clone(),
        egress_drained: saved.egress_drained,
        egress_elected: saved.egress_elected.clone(),
    };
    replace(&peers_path(dir), &serde_json::to_vec_pretty(&file)?)?;
    let mut bytes = Vec::new();
    for record in &saved.records {
        let body = mesh_proto::codec::encode(record);
        bytes.extend_from_slice(&(body.len() as u32).to_be_bytes());
        bytes.extend_from_slice(&body);
    }
    replace(&records_path(dir), &bytes)
}

/// Puts `bytes` in the place of a file, so that a power cut leaves the old or the new one.
pub fn replace(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let new = path.with_extension("new");
    let write = || -> std::io::Result<()> {
        let mut file = std::fs::File::create(&new)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&new, path)
    };
    write().with_context(|| format!("write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_stored_is_loaded_and_a_damaged_file_is_set_aside() {
        let dir = tempfile::tempdir().unwrap();
        let record =
            SignedRecord { certificates: vec![vec![1, 2]], body: vec![3; 100], signature: vec![4; 64] };
        let saved = Saved {
            peers: vec!["198.51.100.12:4650".into()],
            removed: vec!["ph9".parse().unwrap()],
            egress_used: BTreeMap::from([("default".parse().unwrap(), "ph2".parse().unwrap())]),
            egress_drained: true,
            egress_elected: vec![SavedPost {
                network: "default".parse().unwrap(),
                destination: "0.0.0.0/0".parse().unwrap(),
                elected: vec!["ph2".parse().unwrap()],
                failed: vec!["ph3".parse().unwrap()],
            }],
            records: vec![record.clone(), record],
        };
        store(dir.path(), &saved).unwrap();
        assert_eq!(load(dir.path()), (saved, vec![]));
        std::fs::write(records_path(dir.path()), b"\0\0\0\x09abc").unwrap();
        let (saved, complaints) = load(dir.path());
        assert_eq!((saved.peers.len(), saved.records.len(), complaints.len()), (1, 0, 1));
        assert!(dir.path().join("records.damaged").exists());
        assert_eq!(load(&dir.path().join("absent")), (Saved::default(), vec![]));
    }
}
