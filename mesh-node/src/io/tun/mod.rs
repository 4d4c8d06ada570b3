//! The TUN device of one network: make it, read packets from it, write packets to it.
//!
//! Each packet has a `virtio_net_hdr` before it (`forward::segment` reads and writes it), so that the kernel hands us
//! TCP and UDP superpackets whole and takes them back whole. Addresses, MTU and bringing the device up are the work of
//! `io::host`. The packet loop is the caller: one thread reads, others may write and wake.

pub mod drops;
pub(crate) mod sys;

use std::fs::File;
use std::io::{self, IoSlice, Read as _, Write as _};
use std::os::fd::{IntoRawFd, OwnedFd};
use std::time::Duration;

use tun::AbstractDevice as _;

use crate::config::offloads::{Offload, Offloads};

/// Length of `struct virtio_net_hdr` (virtio 1.2 section 5.1.6, without the fields of later feature bits).
pub const VNET_HEADER: usize = 10;

/// Room for the largest read: a superpacket of 64 KiB and its header.
pub const READ_BUFFER: usize = VNET_HEADER + 65_536;

/// Superpackets that wait in the kernel to be read (drivers/net/tun.c: `TUN_READQ_SIZE`, which we leave as it is).
pub const READ_QUEUE: u64 = 500;

/// Why there is no device.
#[derive(Debug, thiserror::Error)]
pub enum TunError {
    /// The kernel refused to make it.
    #[error("create tun device {name} (needs /dev/net/tun, readable and writable, and CAP_NET_ADMIN)")]
    Create {
        /// The name asked for.
        name: String,
        /// What the kernel, or the `tun` crate, said.
        source: tun::Error,
    },
    /// It was made, but not to our needs.
    #[error("set up tun device {name}: {step}")]
    SetUp {
        /// The device.
        name: String,
        /// Which step.
        step: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Whether a read may wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// Return at once.
    No,
    /// Until a packet comes, or a wake-up.
    Forever,
    /// The same, but not longer than this.
    AtMost(Duration),
}

/// What a read gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Read {
    /// A header and a packet of this length in all.
    Packet(usize),
    /// Nothing there, or the time is over.
    Empty,
    /// Somebody called [`Tun::wake`].
    Woken,
}

/// One open device. It vanishes from the kernel when this is dropped.
#[derive(Debug)]
pub struct Tun {
    file: File,
    wake: File,
    name: String,
    index: u32,
    offloads: Offloads,
}

impl Tun {
    /// Makes the device `name`: down, without addresses; with those of the wanted offloads that the kernel has.
    pub fn create(name: &str, wanted: Offloads) -> Result<Self, TunError> {
        let create = |source| TunError::Create { name: name.to_owned(), source };
        let mut config = tun::Configuration::default();
        config.tun_name(name).platform_config(|p| {
            // Without "root privileges" the crate leaves addresses, MTU and the up flag alone.
            p.vnet_hdr(true).ensure_root_privileges(false);
        });
        let device = tun::create(&config).map_err(create)?;
        let name = device.tun_name().map_err(create)?;
        let index = device.tun_index().map_err(create)?;
        let set_up = |step| {
            let name = name.clone();
            move |source| TunError::SetUp { name, step, source }
        };
        let file = File::from(sys::own(device.into_raw_fd()).map_err(set_up("take over its descriptor"))?);
        sys::set_vnet_header_size(&file, VNET_HEADER).map_err(set_up("set the header length"))?;
        let offloads = best_offloads(&file, wanted).map_err(set_up("set offloads"))?;
        let wake = sys::eventfd().map_err(set_up("make its wake-up descriptor"))?;
        Ok(Self { file, wake, name, index: index.max(0) as u32, offloads })
    }

    /// Anything that keeps packet boundaries as a device, such as one end of a `SOCK_SEQPACKET` pair: for tests.
    pub fn from_fd(fd: OwnedFd, name: &str) -> io::Result<Self> {
        let file = File::from(fd);
        let wake = sys::eventfd()?;
        Ok(Self { file, wake, name: name.to_owned(), index: 0, offloads: Offloads::default() })
    }

    /// The same as if the kernel had these offloads for it.
    pub fn with_offloads(self, offloads: Offloads) -> Self {
        Self { offloads, ..self }
    }

    /// Reads one packet with its header before it. [`Wait::No`] costs one syscall.
    pub fn read(&self, buffer: &mut [u8], wait: Wait) -> io::Result<Read> {
        if let Some(n) = sys::read_now(&self.file, buffer)? {
            return Ok(Read::Packet(n));
        }
        let limit = match wait {
            Wait::No => return Ok(Read::Empty),
            Wait::Forever => None,
            Wait::AtMost(limit) => Some(limit),
        };
        if sys::wait(&self.file, &self.wake, limit)? {
            // The counter is reset, so that one wake-up ends one wait.
            let _ = (&self.wake).read(&mut [0; 8]);
            return Ok(Read::Woken);
        }
        Ok(sys::read_now(&self.file, buffer)?.map_or(Read::Empty, Read::Packet))
    }

    /// Writes one packet: the slices joined are its header and its bytes. The kernel forwards it before this returns.
    pub fn write(&self, slices: &[IoSlice<'_>]) -> io::Result<()> {
        loop {
            match (&self.file).write_vectored(slices) {
                Ok(_) => return Ok(()),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }

    /// Ends the reader's wait.
    pub fn wake(&self) {
        // Only a counter at its maximum refuses, and then the reader wakes anyway.
        let _ = (&self.wake).write(&1u64.to_ne_bytes());
    }

    /// The device's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The kernel's number of the device.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// What the kernel hands us unfinished.
    pub fn offloads(&self) -> Offloads {
        self.offloads
    }
}

/// Asks for everything wanted, then for what older kernels know. UDP superpackets came with 6.2.
fn best_offloads(file: &File, wanted: Offloads) -> io::Result<Offloads> {
    let choices: [&[Offload]; 3] =
        [&[Offload::Csum, Offload::Tso, Offload::Uso], &[Offload::Csum, Offload::Tso], &[Offload::Csum]];
    for choice in choices {
        let offloads: Offloads = choice.iter().copied().filter(|o| wanted.has(*o)).collect();
        match sys::set_offload(file, flags(offloads)) {
            Ok(()) => return Ok(offloads),
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(Offloads::default())
}

fn flags(offloads: Offloads) -> libc::c_uint {
    let flag = |offload, flags| if offloads.has(offload) { flags } else { 0 };
    flag(Offload::Csum, sys::TUN_F_CSUM)
        | flag(Offload::Tso, sys::TUN_F_TSO4 | sys::TUN_F_TSO6)
        | flag(Offload::Uso, sys::TUN_F_USO4 | sys::TUN_F_USO6)
}

#[cfg(test)]
mod tests {
    use super::*;
    use socket2::{Domain, Socket, Type};

    fn pair() -> (Tun, Socket) {
        let (a, b) = Socket::pair(Domain::UNIX, Type::SEQPACKET, None).unwrap();
        (Tun::from_fd(a.into(), "fake").unwrap(), b)
    }

    #[test]
    fn a_packet_is_read_whole_and_then_there_is_none() {
        let (tun, far) = pair();
        let mut buffer = [0; 64];
        assert_eq!(tun.read(&mut buffer, Wait::No).unwrap(), Read::Empty);
        far.send(b"one").unwrap();
        far.send(b"second").unwrap();
        assert_eq!(tun.read(&mut buffer, Wait::Forever).unwrap(), Read::Packet(3));
        assert_eq!(tun.read(&mut buffer, Wait::No).unwrap(), Read::Packet(6));
        assert_eq!(tun.read(&mut buffer, Wait::AtMost(Duration::from_millis(2))).unwrap(), Read::Empty);
    }

    #[test]
    fn slices_are_written_as_one_packet() {
        let (tun, far) = pair();
        tun.write(&[IoSlice::new(b"head"), IoSlice::new(b"er")]).unwrap();
        let mut buffer = [0; 64];
        assert_eq!((&far).read(&mut buffer).unwrap(), 6);
    }

    #[test]
    fn a_waiting_reader_is_woken_from_another_thread_once() {
        let (tun, _far) = pair();
        std::thread::scope(|s| {
            let reader = s.spawn(|| tun.read(&mut [0; 64], Wait::Forever).unwrap());
            tun.wake();
            assert_eq!(reader.join().unwrap(), Read::Woken);
        });
        assert_eq!(tun.read(&mut [0; 64], Wait::AtMost(Duration::from_millis(2))).unwrap(), Read::Empty);
    }

    #[test]
    #[ignore = "needs CAP_NET_ADMIN; run it in a network namespace of its own: unshare -n"]
    fn a_real_device_takes_superpackets_and_says_when_it_is_gone() {
        let tun = Tun::create("meshtest%d", Offloads::ALL).unwrap();
        assert_eq!(tun.name(), "meshtest0");
        assert!(tun.index() > 0);
        assert!(tun.offloads().has(Offload::Csum) && tun.offloads().has(Offload::Tso));
        assert_eq!(tun.read(&mut [0; 64], Wait::No).unwrap(), Read::Empty);
        let ip = |args: &[&str]| std::process::Command::new("ip").args(args).status().unwrap();
        assert!(ip(&["link", "set", "meshtest0", "up"]).success());
        // The kernel has something to say on a new link (router solicitation, MLD): a whole IPv6 packet.
        let mut buffer = vec![0; READ_BUFFER];
        let Read::Packet(n) = tun.read(&mut buffer, Wait::AtMost(Duration::from_secs(5))).unwrap() else {
            panic!("no packet");
        };
        assert!(n > VNET_HEADER && buffer[VNET_HEADER] >> 4 == 6);
        assert!(ip(&["link", "del", "meshtest0"]).success());
        assert!(tun.read(&mut buffer, Wait::AtMost(Duration::from_secs(5))).is_err());
    }
}
