//! What the host looks like before we touch it: interfaces, their addresses, uplinks.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::links::{self, InterfaceAddress};
use super::{HostError, routes};

/// Interfaces and addresses at one moment.
#[derive(Debug, Clone)]
pub struct HostAddresses {
    interfaces: BTreeMap<String, links::Link>,
    addresses: Vec<InterfaceAddress>,
    uplinks: Vec<String>,
}

impl HostAddresses {
    /// Asks the kernel.
    pub async fn read() -> Result<Self, HostError> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(HostError::Socket)?;
        let mut driver = tokio::task::JoinSet::new();
        driver.spawn(connection);
        let mut uplinks = Vec::new();
        for v4 in [true, false] {
            if let Some((device, _)) = routes::default_uplink(&handle, v4).await? {
                uplinks.push(device);
            }
        }
        uplinks.dedup();
        Ok(Self {
            interfaces: links::links(&handle).await?,
            addresses: links::addresses(&handle).await?,
            uplinks,
        })
    }

    /// Global addresses of an interface, with the length of their prefix; `None` if there is no such interface.
    pub fn of(&self, interface: &str) -> Option<Vec<(IpAddr, u8)>> {
        self.interfaces.get(interface)?;
        let here = self.addresses.iter().filter(|a| a.global && a.interface == interface);
        Some(here.map(|a| (a.address, a.len)).collect())
    }

    /// The largest packet that an interface carries.
    pub fn mtu(&self, interface: &str) -> Option<u32> {
        Some(self.interfaces.get(interface)?.mtu)
    }

    /// Every global address.
    pub fn global(&self) -> impl Iterator<Item = &InterfaceAddress> {
        self.addresses.iter().filter(|a| a.global)
    }

    /// Every address there is.
    pub fn all(&self) -> &[InterfaceAddress] {
        &self.addresses
    }

    /// Devices of the default routes.
    pub fn uplinks(&self) -> &[String] {
        &self.uplinks
    }
}
