//! The Internet checksum: whole (RFC 1071) and by difference (RFC 1624 equation 3).

/// Adds the 16-bit big-endian words of `bytes` to `sum`; an odd last byte counts as if a zero followed (RFC 1071
/// section 4.1). Fold the result with [`fold`].
pub fn add(mut sum: u64, bytes: &[u8]) -> u64 {
    // Four bytes at a time: one's complement addition does not care about the width (RFC 1071 section 2 (C)).
    let (words, rest) = bytes.as_chunks::<4>();
    for word in words {
        sum += u64::from(u32::from_be_bytes(*word));
    }
    let (halves, odd) = rest.as_chunks::<2>();
    for half in halves {
        sum += u64::from(u16::from_be_bytes(*half));
    }
    match odd {
        [last] => sum + (u64::from(*last) << 8),
        _ => sum,
    }
}

/// Folds a sum to 16 bits, carries added in.
pub fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// The checksum of `bytes`: complement of their sum.
pub fn checksum(bytes: &[u8]) -> u16 {
    !fold(add(0, bytes))
}

/// The sum of a pseudo-header (RFC 9293 section 3.1, RFC 8200 section 8.1) whose addresses are `addresses`.
pub fn pseudo_header(addresses: &[u8], protocol: u8, transport_len: usize) -> u16 {
    fold(add(0, addresses) + u64::from(protocol) + transport_len as u64)
}

/// What a change of summed words adds to their sum, in one's complement arithmetic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Delta(u16);

impl Delta {
    /// No change.
    pub const NONE: Self = Self(0xffff);

    /// The change from `old` to `new`, both of one even length: the sum of `~m + m'`.
    pub fn between(old: &[u8], new: &[u8]) -> Self {
        Self::NONE.plus_sums(fold(add(0, old)), fold(add(0, new)))
    }

    /// This change and the one of a word.
    pub fn word(self, old: u16, new: u16) -> Self {
        self.plus_sums(old, new)
    }

    /// Both changes.
    pub fn and(self, other: Self) -> Self {
        Self::normal(u64::from(self.0) + u64::from(other.0))
    }

    fn plus_sums(self, old: u16, new: u16) -> Self {
        Self::normal(u64::from(self.0) + u64::from(!old) + u64::from(new))
    }

    /// Zero has two forms; only 0xffff is used, so that a sum that was not zero never becomes so (RFC 1624 section 3).
    fn normal(sum: u64) -> Self {
        match fold(sum) {
            0 => Self::NONE,
            delta => Self(delta),
        }
    }

    /// The checksum after the change: `~(~HC + ~m + m')`.
    pub fn apply(self, checksum: u16) -> u16 {
        !fold(u64::from(!checksum) + u64::from(self.0))
    }
}

/// A UDP checksum as sent: zero would mean "none" (RFC 768), its other form is all ones.
pub fn udp_wire_form(checksum: u16) -> u16 {
    if checksum == 0 { 0xffff } else { checksum }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_example_of_rfc_1071_holds() {
        assert_eq!(fold(add(0, &[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7])), 0xddf2);
    }

    #[test]
    fn the_example_of_rfc_1624_does_not_give_negative_zero() {
        assert_eq!(Delta::NONE.word(0x5555, 0x3285).apply(0xdd2f), 0x0000);
    }

    #[test]
    fn a_udp_checksum_of_zero_is_sent_as_all_ones() {
        assert_eq!((udp_wire_form(0), udp_wire_form(7)), (0xffff, 7));
    }

    proptest! {
        #[test]
        fn a_checksum_by_difference_equals_the_whole_one(
            mut bytes in proptest::collection::vec(any::<u8>(), 8..64),
            new in any::<[u8; 4]>(),
        ) {
            bytes[7] |= 1; // A header is never all zero.
            let before = checksum(&bytes);
            let delta = Delta::between(&bytes[..4], &new);
            bytes[..4].copy_from_slice(&new);
            prop_assert_eq!(delta.apply(before), checksum(&bytes));
        }
    }
}
