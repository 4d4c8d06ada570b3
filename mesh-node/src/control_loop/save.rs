//! What survives a restart, on its way to the disk.

use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::watch;

use crate::control::event::Saved;
use crate::io::notices::tell;
use crate::io::state;
use crate::notice::Notice;

/// Between two attempts to write to a disk that refused.
const RETRY_SAVE: Duration = Duration::from_secs(1);

/// Writes state to disk, the latest value only, until its sender is gone and the last value is written.
pub async fn run(dir: PathBuf, mut saved: watch::Receiver<Saved>) {
    let mut written: Option<Saved> = None;
    let mut told = false;
    // a value not yet seen comes before the news that the sender has gone
    while saved.changed().await.is_ok() {
        loop {
            let latest = saved.borrow_and_update().clone();
            if written.as_ref() == Some(&latest) {
                break;
            }
            let (dir, value) = (dir.clone(), latest.clone());
            let result = tokio::task::spawn_blocking(move || state::store(&dir, &value)).await;
            let error = match result {
                Ok(Ok(())) => {
                    written = Some(latest);
                    told = false;
                    break;
                }
                Ok(Err(error)) => format!("{error:#}"),
                Err(error) => error.to_string(),
            };
            if !told {
                tell(Notice::StateNotSaved { error });
                told = true;
            }
            // a newer value, or the same once more; at a stop there is no more waiting
            if let Ok(Err(_)) = tokio::time::timeout(RETRY_SAVE, saved.changed()).await {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(peer: usize) -> Saved {
        Saved { peers: vec![format!("198.51.100.{peer}:4650")], ..Saved::default() }
    }

    #[tokio::test]
    async fn the_last_state_is_on_disk_when_the_sender_has_gone_even_if_it_was_the_only_one() {
        let dir = tempfile::tempdir().unwrap();
        let (tx, rx) = watch::channel(Saved::default());
        tx.send_replace(value(1));
        tx.send_replace(value(2));
        drop(tx);
        run(dir.path().to_owned(), rx).await;
        assert_eq!(state::load(dir.path()).0, value(2));
    }

    #[tokio::test]
    async fn a_disk_that_refuses_is_asked_again() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("absent");
        let (tx, rx) = watch::channel(Saved::default());
        let task = tokio::spawn(run(dir.clone(), rx));
        tx.send_replace(value(1));
        tokio::time::sleep(Duration::from_millis(200)).await;
        std::fs::create_dir(&dir).unwrap();
        for _ in 0..100 {
            tokio::time::sleep(Duration::from_millis(100)).await;
            if state::load(&dir).0 == value(1) {
                break;
            }
        }
        assert_eq!(state::load(&dir).0, value(1));
        drop(tx);
        task.await.unwrap();
    }
}
