//! The TUN device of one network: make it, with one queue or several, read packets from it, write packets to it.
//!
//! Each packet has a `virtio_net_hdr` before it (`forward::segment` reads and writes it), so that the kernel hands us
//! TCP and UDP superpackets whole and takes them back whole. Addresses, MTU and bringing the device up are the work of
//! `io::host`. The packet loop is the caller: one thread reads each queue, others may write and wake.
//!
//! Which queue a packet comes out of is the kernel's choice, by its flow: that which a packet of the flow was last written to
//! within 3 s (drivers/net/tun.c: `tun_flow_update`), else one by the hash of its addresses and ports.

pub mod drops;
pub(crate) mod sys;

use std::fs::File;
use std::io::{self, IoSlice, Read as _, Write as _};
use std::os::fd::{IntoRawFd, OwnedFd};
use std::time::Duration;

use nix::net::if_::if_nametoindex;
use tun::AbstractDevice as _;

use crate::config::offloads::{Offload, Offloads};

/// Length of `struct virtio_net_hdr` (virtio 1.2 section 5.1.6, without the fields of later feature bits).
pub const VNET_HEADER: usize = 10;

/// Room for the largest read: a superpacket of 64 KiB and its header.
pub const READ_BUFFER: usize = VNET_HEADER + 65_536;

/// Superpackets that wait in the kernel to be read, in each queue (drivers/net/tun.c: `TUN_READQ_SIZE`, which we leave as it is).
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
    /// The kernel refused to add one more queue.
    #[error("add queue {queue} to tun device {name}")]
    Queue {
        /// The device.
        name: String,
        /// Which, from 0 on.
        queue: u8,
        /// What the kernel said.
        source: io::Error,
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

/// One queue of an open device, which has often no other. The device vanishes from the kernel when its last queue is dropped.
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
        let fd = sys::own(device.into_raw_fd()).map_err(|source| TunError::SetUp {
            name: name.clone(),
            step: "take over its descriptor",
            source,
        })?;
        Self::set_up(File::from(fd), name, wanted)
    }

    /// [`Self::create`] with so many queues, each to be read by a thread of its own; with one, and with none, the same.
    pub fn queues(name: &str, wanted: Offloads, queues: u8) -> Result<Vec<Self>, TunError> {
        if queues <= 1 {
            return Ok(vec![Self::create(name, wanted)?]);
        }
        // A device that somebody else holds would give each of us some of the packets.
        let first = attach(name, libc::IFF_TUN_EXCL);
        let (file, name) =
            first.map_err(|e| TunError::Create { name: name.to_owned(), source: tun::Error::Io(e) })?;
        let mut all = vec![Self::set_up(file, name.clone(), wanted)?];
        for queue in 1..queues {
            let added = attach(&name, 0);
            let (file, name) =
                added.map_err(|source| TunError::Queue { name: name.clone(), queue, source })?;
            all.push(Self::set_up(file, name, wanted)?);
        }
        Ok(all)
    }

    fn set_up(file: File, name: String, wanted: Offloads) -> Result<Self, TunError> {
        let failed = |step| {
            let name = name.clone();
            move |source| TunError::SetUp { name, step, source }
        };
        let index =
            if_nametoindex(name.as_str()).map_err(io::Error::from).map_err(failed("ask for its number"))?;
        sys::set_vnet_header_size(&file, VNET_HEADER).map_err(failed("set the header length"))?;
        let offloads = best_offloads(&file, wanted).map_err(failed("set offloads"))?;
        let wake = sys::eventfd().map_err(failed("make its wake-up descriptor"))?;
        Ok(Self { file, wake, name, index, offloads })
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

/// A new queue of the device `name`, which is made if it is not there; and the name that it has.
fn attach(name: &str, more_flags: libc::c_int) -> io::Result<(File, String)> {
    let file = File::options().read(true).write(true).open("/dev/net/tun")?;
    let flags = libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_MULTI_QUEUE | more_flags;
    let name = sys::attach(&file, name, flags)?;
    Ok((file, name))
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

    #[test]
    #[ignore = "needs CAP_NET_ADMIN; run it in a network namespace of its own: unshare -n"]
    fn a_real_device_with_two_queues_gives_each_flow_to_one_and_goes_with_the_last() {
        let mut queues = Tun::queues("meshtwo%d", Offloads::ALL, 2).unwrap();
        assert!(queues.iter().all(|q| q.name() == "meshtwo0" && q.index() == queues[0].index()));
        assert_eq!(queues[0].offloads(), queues[1].offloads());
        let taken = Tun::queues("meshtwo0", Offloads::ALL, 2).unwrap_err();
        assert!(matches!(taken, TunError::Create { .. }), "{taken}");
        let ip = |args: &[&str]| std::process::Command::new("ip").args(args).status().unwrap().success();
        assert!(ip(&["addr", "add", "192.0.2.1/24", "dev", "meshtwo0"]));
        assert!(ip(&["link", "set", "meshtwo0", "up"]));
        let mut buffer = vec![0; READ_BUFFER];
        let mut ports = [const { Vec::new() }; 2];
        for _ in 0..2 {
            for port in 1000..1032u16 {
                let socket = std::net::UdpSocket::bind(("192.0.2.1", port)).unwrap();
                socket.send_to(b"x", "192.0.2.2:9").unwrap();
            }
            for (queue, ports) in queues.iter().zip(&mut ports) {
                while let Read::Packet(n) = queue.read(&mut buffer, Wait::No).unwrap() {
                    let packet = &buffer[VNET_HEADER..n];
                    // past what the kernel says on a new link
                    if packet[0] == 0x45 && packet[9] == 17 {
                        ports.push(u16::from_be_bytes([packet[20], packet[21]]));
                    }
                }
            }
        }
        let [first, second] = ports;
        assert_eq!(first.len() + second.len(), 64);
        assert!(!first.is_empty() && !second.is_empty(), "{first:?} {second:?}");
        assert!(first.iter().all(|port| !second.contains(port)), "{first:?} {second:?}");
        drop(queues.pop());
        assert!(ip(&["link", "show", "meshtwo0"]));
        drop(queues);
        assert!(!ip(&["link", "show", "meshtwo0"]));
    }

    #[test]
    #[ignore = "needs CAP_NET_ADMIN; run it in a network namespace of its own: unshare -n"]
    fn readers_of_all_queues_learn_that_the_device_is_gone() {
        let queues = Tun::queues("meshgone%d", Offloads::ALL, 2).unwrap();
        std::thread::scope(|s| {
            let readers: Vec<_> = queues
                .iter()
                .map(|queue| s.spawn(|| queue.read(&mut [0; 64], Wait::AtMost(Duration::from_secs(5)))))
                .collect();
            std::thread::sleep(Duration::from_millis(50));
            let gone = std::process::Command::new("ip").args(["link", "del", queues[0].name()]).status();
            assert!(gone.unwrap().success());
            assert!(readers.into_iter().all(|reader| reader.join().unwrap().is_err()));
        });
    }
}
