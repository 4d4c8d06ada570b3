//! One task that keeps the kernel at the latest desired state: on a new state, when somebody changed something, and on a timer.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tracing::warn;

use super::HostSync;
use crate::config::ForeignChains;
use crate::control::event::Input;
use crate::control::host::HostState;
use crate::control::host::foreign::ForeignChain;
use crate::io::quic::connection::Event;

/// nftables tells nobody of a flush that we listen to: look this often.
const CHECK: Duration = Duration::from_secs(2);

/// Others' firewalls change seldom, and listing them costs more: every this many checks.
const FOREIGN_EVERY: u32 = 3;

/// Serves until the sender of numbered states is dropped, and tells in `applied` how far it is; returns what it owns, for
/// the tear-down.
pub async fn run(
    mut sync: HostSync,
    mut states: watch::Receiver<(u64, Arc<HostState>)>,
    applied: watch::Sender<u64>,
    events: mpsc::Sender<Event>,
) -> HostSync {
    let (changed_tx, mut changed) = mpsc::channel(1);
    let watcher = tokio::spawn(async move {
        if let Err(error) = super::watch::watch(changed_tx).await {
            warn!(%error, "changes of routes are not told: they are found by the timer only");
        }
    });
    let mut checks = 0;
    loop {
        tokio::select! {
            state = states.changed() => if state.is_err() {
                break;
            },
            Some(()) = changed.recv() => {}
            () = tokio::time::sleep(CHECK) => {}
        }
        let (number, state) = states.borrow_and_update().clone();
        let input = match sync.apply(&state).await {
            Ok(repaired) => Input::HostSynced(repaired),
            Err(error) => Input::HostFailed(error.to_string()),
        };
        // also where a part has failed: the rest stands, and its failure is told
        applied.send_replace(number);
        if events.send(Event::Input(input)).await.is_err() {
            break;
        }
        // our own changes are announced as well: they are not somebody's
        while changed.try_recv().is_ok() {}
        if checks % FOREIGN_EVERY == 0 {
            look_for_foreign_chains(&mut sync, &state, &events).await;
        }
        checks += 1;
    }
    watcher.abort();
    sync
}

async fn look_for_foreign_chains(sync: &mut HostSync, state: &HostState, events: &mpsc::Sender<Event>) {
    if state.foreign_chains == ForeignChains::Report
        && let Err(error) = sync.leave_foreign().await
    {
        warn!(%error, "accept rules of ours stay in the host's chains");
    }
    let chains = match sync.foreign_chains(state).await {
        Ok(chains) => chains,
        Err(error) => return warn!(%error, "the host's firewall cannot be read"),
    };
    if state.foreign_chains == ForeignChains::Insert && !chains.is_empty() {
        if let Err(error) = sync.insert_into_foreign(&chains).await {
            warn!(%error, "accept rules cannot be put into the host's chains");
        }
        return;
    }
    let name = |c: &ForeignChain| format!("chain {} of table {} {} ({})", c.chain, c.family, c.table, c.tun);
    let told = chains.iter().map(|c| (name(c), c.command())).collect();
    let _ = events.send(Event::Input(Input::ForeignChains(told))).await;
}
