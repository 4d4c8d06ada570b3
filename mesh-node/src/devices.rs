//! The TUN devices and their packet threads: made, made anew when somebody deletes one, removed.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::config::offloads::Offloads;
use crate::control::event::LocalNetwork;
use crate::control::slowness;
use crate::forward::fib::NetworkIx;
use crate::io::notices::tell;
use crate::io::quic::datagram::InboundSender;
use crate::io::slowness::DeviceOffloads;
use crate::io::tun::Tun;
use crate::notice::Notice;
use crate::packet_loop::{PacketLoops, Waker};
use anyhow::Context as _;

/// One TUN a network, with a queue for each worker.
pub struct Devices {
    loops: PacketLoops,
    networks: Vec<LocalNetwork>,
    /// Lost, and not made anew yet.
    missing: BTreeSet<NetworkIx>,
    told: bool,
    offloads: Offloads,
    workers: u8,
}

impl Devices {
    /// Makes the device of every network, with these offloads where the kernel has them, and so many queues.
    pub fn start(
        loops: PacketLoops,
        networks: &[LocalNetwork],
        offloads: Offloads,
        workers: u8,
    ) -> anyhow::Result<Self> {
        let mut devices =
            Self { loops, networks: Vec::new(), missing: BTreeSet::new(), told: false, offloads, workers };
        for network in networks {
            devices.add(network)?;
        }
        Ok(devices)
    }

    /// The offloads of each network's device.
    pub fn offloads(&self) -> DeviceOffloads {
        self.loops.device_offloads()
    }

    /// Where a tunnel's packets go.
    pub fn inbound(&self) -> InboundSender {
        self.loops.inbound()
    }

    /// Wakes what sends.
    pub fn waker(&self) -> Waker {
        self.loops.waker()
    }

    /// Makes the device of a network that has none yet.
    pub fn add(&mut self, network: &LocalNetwork) -> anyhow::Result<()> {
        if self.networks.iter().any(|known| known.ix == network.ix) {
            return Ok(());
        }
        self.make(network)?;
        self.networks.push(network.clone());
        Ok(())
    }

    fn make(&mut self, network: &LocalNetwork) -> anyhow::Result<()> {
        let tuns = Tun::queues(&network.tun, self.offloads, self.workers)
            .with_context(|| format!("network {}", network.name))?;
        let offloads = tuns.first().map(Tun::offloads).unwrap_or_default();
        tell(Notice::NetworkUp {
            network: network.name.clone(),
            tun: network.tun.clone(),
            offloads: offloads.to_string(),
        });
        for (device, offload, text) in slowness::missing_of_tun(&network.tun, self.offloads, offloads) {
            tell(Notice::OffloadMissing { device, offload, text });
        }
        self.loops.add_network(network.ix, tuns.into_iter().map(Arc::new).collect())?;
        Ok(())
    }

    /// Removes the devices of networks that are not among these.
    pub fn retain(&mut self, networks: &[LocalNetwork]) {
        let gone = |known: &LocalNetwork| !networks.iter().any(|network| network.ix == known.ix);
        for network in self.networks.extract_if(.., |known| gone(known)) {
            self.missing.remove(&network.ix);
            self.loops.remove_network(network.ix);
        }
    }

    /// Makes anew what somebody has deleted, and names it; the routes are put back by the host task, which hears of the new
    /// link.
    pub fn mend(&mut self) -> Vec<String> {
        for lost in self.loops.lost_networks() {
            self.loops.remove_network(lost);
            self.missing.insert(lost);
        }
        let lost = |network: &&LocalNetwork| self.missing.contains(&network.ix);
        let missing: Vec<LocalNetwork> = self.networks.iter().filter(lost).cloned().collect();
        let mut mended = Vec::new();
        for network in missing {
            match self.make(&network) {
                Ok(()) => {
                    self.missing.remove(&network.ix);
                    self.told = false;
                    mended.push(format!("TUN device {} had been removed", network.tun));
                }
                Err(error) if !self.told => {
                    self.told = true;
                    tell(Notice::DeviceNotMade { error: format!("{error:#}") });
                }
                Err(_) => {}
            }
        }
        mended
    }

    /// Removes all of them.
    pub fn stop(&mut self) {
        self.loops.stop();
    }
}
