//! Tells when somebody changed links, addresses, routes or rules, so that ours are put right at once.

use std::time::Duration;

use futures_util::StreamExt as _;
use rtnetlink::MulticastGroup;
use tokio::sync::mpsc;

use super::HostError;

/// A flush is many messages: this long after the first they are taken for one change.
const QUIET: Duration = Duration::from_millis(50);

/// Sends on `changed` after each burst of changes, our own included. Which change it was is not told: the receiver
/// compares everything, so that messages lost to an overrun (itself a message here) cost nothing. A full channel already
/// says it. Ends with an error when the socket does, and well when the receiver is gone.
pub async fn watch(changed: mpsc::Sender<()>) -> Result<(), HostError> {
    let ours = [
        MulticastGroup::Ipv4Route,
        MulticastGroup::Ipv6Route,
        MulticastGroup::Ipv4Rule,
        MulticastGroup::Ipv6Rule,
    ];
    listen(&[&ADDRESSES[..], &ours].concat(), changed).await
}

/// The same for links and addresses alone: our own routes and rules wake nobody.
pub async fn addresses(changed: mpsc::Sender<()>) -> Result<(), HostError> {
    listen(&ADDRESSES, changed).await
}

/// Calls for a look at the state of an interface now, and at once after each change of any link. Ends with an error when a
/// socket does; `told` says that nobody listens any more.
pub async fn link(interface: &str, mut told: impl FnMut(bool) -> bool) -> Result<(), HostError> {
    let (connection, handle, mut messages) =
        rtnetlink::new_multicast_connection(&[MulticastGroup::Link]).map_err(HostError::Socket)?;
    let mut driver = tokio::task::JoinSet::new();
    driver.spawn(connection);
    loop {
        // what has come by now is answered by one look
        while messages.try_recv().is_ok() {}
        if !told(super::links::carries(&handle, interface).await?) {
            return Ok(());
        }
        if messages.next().await.is_none() {
            return Err(HostError::Socket(std::io::Error::other("the netlink socket was closed")));
        }
    }
}

const ADDRESSES: [MulticastGroup; 3] =
    [MulticastGroup::Link, MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr];

async fn listen(groups: &[MulticastGroup], changed: mpsc::Sender<()>) -> Result<(), HostError> {
    let (connection, _handle, mut messages) =
        rtnetlink::new_multicast_connection(groups).map_err(HostError::Socket)?;
    let mut driver = tokio::task::JoinSet::new();
    driver.spawn(connection);
    while messages.next().await.is_some() {
        tokio::time::sleep(QUIET).await;
        while messages.try_recv().is_ok() {}
        if let Err(mpsc::error::TrySendError::Closed(())) = changed.try_send(()) {
            return Ok(());
        }
    }
    Err(HostError::Socket(std::io::Error::other("the netlink socket was closed")))
}
