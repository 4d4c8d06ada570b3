//! Probes of a tunnel, in the format of BFD control packets (RFC 5880 section 4.1), without authentication: the tunnel has
//! its own. What they mean to a node is its own affair.

/// State of a session as its sender sees it (RFC 5880 section 4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    /// Not used on purpose.
    AdminDown = 0,
    /// Nothing heard, or too long ago.
    Down = 1,
    /// The other side has been heard.
    Init = 2,
    /// Both sides hear each other.
    Up = 3,
}

impl State {
    /// All of them, by their number.
    pub const ALL: [Self; 4] = [Self::AdminDown, Self::Down, Self::Init, Self::Up];
}

/// Why the sender's session went down last (RFC 5880 section 4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Diagnostic {
    /// No reason.
    None = 0,
    /// Nothing was heard within the detection time.
    DetectionTimeExpired = 1,
    /// The other side said that its session is down.
    NeighborDown = 3,
    /// The operator, or the node, no longer wants it.
    AdministrativelyDown = 7,
}

/// A probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Probe {
    /// Of the sender's session.
    pub state: State,
    /// Of its last change for the worse; others than ours are read as `None`.
    pub diagnostic: Diagnostic,
    /// So many probes may be missing.
    pub multiplier: u8,
    /// The sender's number of the session; not 0.
    pub my_discriminator: u32,
    /// The receiver's number, as far as the sender knows it.
    pub your_discriminator: u32,
    /// How often the sender would like to send.
    pub desired_min_tx_us: u32,
    /// How often it is able to receive.
    pub required_min_rx_us: u32,
}

/// Bytes that are not a probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProbeError {
    /// Length, version or a flag that this side does not speak.
    #[error("not a probe of this version")]
    Format,
    /// A field that RFC 5880 section 6.8.6 forbids.
    #[error("a probe with a forbidden value")]
    Value,
}

impl Probe {
    /// Length on the wire.
    pub const LEN: usize = 24;

    const VERSION: u8 = 1;

    /// As it goes on the wire.
    pub fn encode(&self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[0] = Self::VERSION << 5 | self.diagnostic as u8;
        bytes[1] = (self.state as u8) << 6;
        bytes[2] = self.multiplier;
        bytes[3] = Self::LEN as u8;
        let words =
            [self.my_discriminator, self.your_discriminator, self.desired_min_tx_us, self.required_min_rx_us];
        for (at, word) in words.into_iter().enumerate() {
            bytes[4 + 4 * at..8 + 4 * at].copy_from_slice(&word.to_be_bytes());
        }
        bytes
    }

    /// Reads one, with the checks of RFC 5880 section 6.8.6 that need no session.
    pub fn decode(bytes: &[u8]) -> Result<Self, ProbeError> {
        let bytes: &[u8; Self::LEN] = bytes.try_into().map_err(|_| ProbeError::Format)?;
        // flags: poll and final are not used, authentication, demand and multipoint not supported
        if bytes[0] >> 5 != Self::VERSION || bytes[3] != Self::LEN as u8 || bytes[1] & 0x3f != 0 {
            return Err(ProbeError::Format);
        }
        let word = |at: usize| u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let state = State::ALL[usize::from(bytes[1] >> 6)];
        let diagnostic = match bytes[0] & 0x1f {
            1 => Diagnostic::DetectionTimeExpired,
            3 => Diagnostic::NeighborDown,
            7 => Diagnostic::AdministrativelyDown,
            _ => Diagnostic::None,
        };
        let probe = Self {
            state,
            diagnostic,
            multiplier: bytes[2],
            my_discriminator: word(4),
            your_discriminator: word(8),
            desired_min_tx_us: word(12),
            required_min_rx_us: word(16),
        };
        let nameless = probe.your_discriminator == 0 && matches!(state, State::Init | State::Up);
        if probe.multiplier == 0 || probe.my_discriminator == 0 || nameless {
            return Err(ProbeError::Value);
        }
        Ok(probe)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn probe() -> Probe {
        Probe {
            state: State::Up,
            diagnostic: Diagnostic::NeighborDown,
            multiplier: 3,
            my_discriminator: 0x0102_0304,
            your_discriminator: 5,
            desired_min_tx_us: 50_000,
            required_min_rx_us: 50_000,
        }
    }

    #[test]
    fn the_bytes_are_those_of_rfc_5880() {
        let expected = b"\x23\xc0\x03\x18\x01\x02\x03\x04\0\0\0\x05\0\0\xc3\x50\0\0\xc3\x50\0\0\0\0";
        assert_eq!(&probe().encode(), expected);
        assert_eq!(Probe::decode(expected), Ok(probe()));
    }

    #[test]
    fn every_bit_that_means_something_else_is_refused() {
        let good = probe().encode();
        let changed = |at: usize, value: u8| {
            let mut bytes = good;
            bytes[at] = value;
            Probe::decode(&bytes)
        };
        assert_eq!(changed(0, 0x43), Err(ProbeError::Format), "another version");
        for flag in 0..6 {
            assert_eq!(changed(1, 0xc0 | 1 << flag), Err(ProbeError::Format), "flag {flag}");
        }
        assert_eq!(changed(2, 0), Err(ProbeError::Value), "no multiplier");
        assert_eq!(changed(3, 23), Err(ProbeError::Format), "another length");
        assert_eq!(Probe::decode(&good[..23]), Err(ProbeError::Format));
        assert_eq!(Probe::decode(&[&good[..], &[0]].concat()), Err(ProbeError::Format));
        for state in State::ALL {
            let nameless = Probe { state, your_discriminator: 0, ..probe() };
            let fine = matches!(state, State::Down | State::AdminDown);
            assert_eq!(Probe::decode(&nameless.encode()).is_ok(), fine, "{state:?}");
            let mine = Probe { state, my_discriminator: 0, ..probe() };
            assert_eq!(Probe::decode(&mine.encode()), Err(ProbeError::Value));
        }
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_panic_and_what_is_read_is_what_was_written(
            bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..32),
            state in 0usize..4,
            multiplier in 1u8..,
            mine in 1u32..,
            yours in 1u32..,
            times: (u32, u32),
        ) {
            let _ = Probe::decode(&bytes);
            let probe = Probe {
                state: State::ALL[state],
                diagnostic: Diagnostic::DetectionTimeExpired,
                multiplier,
                my_discriminator: mine,
                your_discriminator: yours,
                desired_min_tx_us: times.0,
                required_min_rx_us: times.1,
            };
            proptest::prop_assert_eq!(Probe::decode(&probe.encode()), Ok(probe));
        }
    }
}
