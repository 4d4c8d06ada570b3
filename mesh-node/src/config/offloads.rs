//! Which work the kernel does in larger pieces: what is wanted, and what there is.

use std::fmt;

/// One offload; the name in the file is the first of its words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Offload {
    /// TUN: packets whose checksum is left to the receiver.
    Csum,
    /// TUN: TCP superpackets.
    Tso,
    /// TUN: UDP superpackets (kernel 6.2 and later).
    Uso,
    /// UDP socket: several datagrams a send, `UDP_SEGMENT` of udp(7).
    Gso,
    /// UDP socket: several datagrams a receive, `UDP_GRO` of udp(7).
    Gro,
}

impl Offload {
    /// All of them, the TUN's first.
    pub const ALL: [Self; 5] = [Self::Csum, Self::Tso, Self::Uso, Self::Gso, Self::Gro];

    /// The word in the file.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Csum => "csum",
            Self::Tso => "tso",
            Self::Uso => "uso",
            Self::Gso => "gso",
            Self::Gro => "gro",
        }
    }

    /// What it costs to be without it.
    pub fn cost(self) -> &'static str {
        match self {
            Self::Csum => "VMs' packets come one by one and with finished checksums, TCP and UDP alike",
            Self::Tso => "the kernel cuts VMs' TCP before we read it: a read for each packet",
            Self::Uso => "the kernel cuts VMs' UDP before we read it: a read for each packet",
            Self::Gso => "each datagram to a peer is a call of its own",
            Self::Gro => "each datagram from a peer is received by itself",
        }
    }

    /// Which kernels have it.
    pub fn since(self) -> &'static str {
        match self {
            Self::Csum | Self::Tso => "every kernel that we run on has it",
            Self::Uso => "Linux 6.2 and later have it",
            Self::Gso => "Linux 4.18 and later have it, where the uplink's driver computes checksums",
            Self::Gro => "Linux 5.0 and later have it",
        }
    }

    /// Whether it is the TUN's; the others are the UDP socket's.
    pub fn of_tun(self) -> bool {
        matches!(self, Self::Csum | Self::Tso | Self::Uso)
    }
}

/// A set of them.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Offloads([bool; Offload::ALL.len()]);

impl Offloads {
    /// Everything.
    pub const ALL: Self = Self([true; Offload::ALL.len()]);

    /// Whether it is among them.
    pub fn has(self, offload: Offload) -> bool {
        self.0[offload as usize]
    }

    /// With this one, or without.
    pub fn set(&mut self, offload: Offload, to: bool) {
        self.0[offload as usize] = to;
    }
}

impl FromIterator<Offload> for Offloads {
    fn from_iter<T: IntoIterator<Item = Offload>>(all: T) -> Self {
        let mut set = Self::default();
        all.into_iter().for_each(|offload| set.set(offload, true));
        set
    }
}

impl fmt::Display for Offloads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words: Vec<_> = Offload::ALL.into_iter().filter(|o| self.has(*o)).map(Offload::as_str).collect();
        f.write_str(if words.is_empty() { "none" } else { "" })?;
        f.write_str(&words.join(" "))
    }
}

impl fmt::Debug for Offloads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Offloads({self})")
    }
}

/// A word of the file.
pub(super) fn parse(text: &str) -> Result<Offload, String> {
    let known = Offload::ALL.into_iter().find(|o| o.as_str() == text);
    known.ok_or_else(|| "is no offload; write \"csum\", \"tso\", \"uso\", \"gso\" or \"gro\"".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_of_the_file_is_known_and_no_other() {
        for offload in Offload::ALL {
            assert_eq!(parse(offload.as_str()), Ok(offload));
            let alone: Offloads = [offload].into_iter().collect();
            for other in Offload::ALL {
                assert_eq!(alone.has(other), other == offload);
            }
            assert_eq!(alone.to_string(), offload.as_str());
        }
        assert!(parse("lro").unwrap_err().contains("\"gro\""));
        assert_eq!(
            (Offloads::ALL.to_string().as_str(), Offloads::default().to_string().as_str()),
            ("csum tso uso gso gro", "none")
        );
    }
}
