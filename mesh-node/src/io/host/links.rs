//! Interfaces: their index, addresses and state, and where the outside is.

use std::collections::BTreeMap;
use std::net::IpAddr;

use futures_util::TryStreamExt;
use mesh_proto::Prefix;
use netlink_packet_route::address::{AddressAttribute, AddressScope};
use netlink_packet_route::link::{LinkAttribute, LinkFlags};
use rtnetlink::{Handle, LinkMessageBuilder, LinkUnspec};

use super::HostError;

/// An interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// The kernel's number of it.
    pub index: u32,
    /// Whether it is set up.
    pub up: bool,
    /// Its MTU.
    pub mtu: u32,
}

/// All interfaces by name.
pub async fn links(handle: &Handle) -> Result<BTreeMap<String, Link>, HostError> {
    let mut found = BTreeMap::new();
    let mut stream = std::pin::pin!(handle.link().get().execute());
    while let Some(message) =
        stream.try_next().await.map_err(|e| HostError::netlink("list interfaces", &e))?
    {
        let (mut name, mut mtu) = (None, 0);
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(text) => name = Some(text.clone()),
                LinkAttribute::Mtu(value) => mtu = *value,
                _ => {}
            }
        }
        let up = message.header.flags.contains(LinkFlags::Up);
        if let Some(name) = name {
            found.insert(name, Link { index: message.header.index, up, mtu });
        }
    }
    Ok(found)
}

/// The kernel's number of an interface; `None` if there is none of that name.
pub async fn interface_index(handle: &Handle, name: &str) -> Result<Option<u32>, HostError> {
    Ok(links(handle).await?.get(name).map(|link| link.index))
}

/// Whether an interface is there, set up, and has a carrier: IFF_RUNNING is RFC 2863's operational state (netdevice(7)).
pub async fn carries(handle: &Handle, name: &str) -> Result<bool, HostError> {
    let mut stream = std::pin::pin!(handle.link().get().match_name(name.to_owned()).execute());
    match stream.try_next().await {
        Ok(Some(message)) => {
            let flags = message.header.flags;
            Ok(flags.contains(LinkFlags::Up) && flags.contains(LinkFlags::Running))
        }
        Ok(None) => Ok(false),
        Err(rtnetlink::Error::NetlinkError(error)) if error.raw_code() == -libc::ENODEV => Ok(false),
        Err(error) => Err(HostError::netlink(&format!("look at {name}"), &error)),
    }
}

/// Sets an interface up, with this MTU and queue length where given.
pub async fn set_link(
    handle: &Handle,
    name: &str,
    mtu: Option<u32>,
    txqueuelen: Option<u32>,
) -> Result<(), HostError> {
    let index =
        interface_index(handle, name).await?.ok_or_else(|| HostError::NoInterface(name.to_owned()))?;
    let mut message = LinkMessageBuilder::<LinkUnspec>::new().index(index).up();
    if let Some(mtu) = mtu {
        message = message.mtu(mtu);
    }
    if let Some(len) = txqueuelen {
        message = message.txqueuelen(len);
    }
    let set = handle.link().set(message.build()).execute().await;
    set.map_err(|e| HostError::netlink(&format!("set {name} up"), &e))
}

/// An address of an interface.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct InterfaceAddress {
    /// The interface.
    pub interface: String,
    /// The address.
    pub address: IpAddr,
    /// Length of its network's prefix.
    pub len: u8,
    /// Whether it is valid beyond the link.
    pub global: bool,
}

impl InterfaceAddress {
    /// The connected network it stands for.
    pub fn network(&self) -> Option<Prefix> {
        Prefix::covering(self.address, self.len).ok()
    }
}

/// All addresses of all interfaces.
pub async fn addresses(handle: &Handle) -> Result<Vec<InterfaceAddress>, HostError> {
    let names: BTreeMap<u32, String> =
        links(handle).await?.into_iter().map(|(name, link)| (link.index, name)).collect();
    let mut found = Vec::new();
    let mut stream = std::pin::pin!(handle.address().get().execute());
    while let Some(message) = stream.try_next().await.map_err(|e| HostError::netlink("list addresses", &e))? {
        // On a point-to-point link `Address` is the far end, `Local` ours; IPv6 has no `Local` else.
        let (mut local, mut address) = (None, None);
        for attribute in &message.attributes {
            match attribute {
                AddressAttribute::Local(ip) => local = Some(*ip),
                AddressAttribute::Address(ip) => address = Some(*ip),
                _ => {}
            }
        }
        let (Some(ip), Some(interface)) = (local.or(address), names.get(&message.header.index)) else {
            continue;
        };
        found.push(InterfaceAddress {
            interface: interface.clone(),
            address: ip,
            len: message.header.prefix_len,
            global: message.header.scope == AddressScope::Universe && !ip.is_loopback(),
        });
    }
    found.sort();
    Ok(found)
}

/// The global addresses of one interface, with the length of their prefix.
pub async fn interface_addresses(handle: &Handle, name: &str) -> Result<Vec<(IpAddr, u8)>, HostError> {
    let all = addresses(handle).await?;
    Ok(all.into_iter().filter(|a| a.global && a.interface == name).map(|a| (a.address, a.len)).collect())
}
