//! An IP prefix in canonical form: no bit set beyond its length.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// An IPv4 or IPv6 prefix. Ordered by family, address, length.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix {
    address: IpAddr,
    len: u8,
}

/// Text or bytes that are not a prefix.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PrefixError {
    /// Not an address, or not a number after the slash.
    #[error("{0:?} is not a prefix: write it as 10.77.1.0/24 or fd77:1::/64")]
    Syntax(String),
    /// Longer than the family allows.
    #[error("prefix length {len} is more than {max}")]
    Length {
        /// The length given.
        len: u8,
        /// What the family allows.
        max: u8,
    },
    /// Bits are set beyond the length.
    #[error("{given} has host bits set: did you mean {meant}?")]
    HostBits {
        /// As given.
        given: String,
        /// With the host bits cleared.
        meant: Prefix,
    },
}

/// An address as a number, right-aligned, whatever its family.
fn bits_of(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(a) => u128::from(a.to_bits()),
        IpAddr::V6(a) => a.to_bits(),
    }
}

fn address_of(bits: u128, v4: bool) -> IpAddr {
    if v4 { IpAddr::V4(Ipv4Addr::from_bits(bits as u32)) } else { IpAddr::V6(Ipv6Addr::from_bits(bits)) }
}

fn width(v4: bool) -> u8 {
    if v4 { 32 } else { 128 }
}

/// The bits of an address of `width` that lie beyond `len`.
fn host_mask(len: u8, width: u8) -> u128 {
    match width - len {
        128 => u128::MAX,
        host => (1u128 << host) - 1,
    }
}

impl Prefix {
    /// The prefix of this length that holds `address`: host bits are cleared.
    pub fn covering(address: IpAddr, len: u8) -> Result<Self, PrefixError> {
        let max = width(address.is_ipv4());
        if len > max {
            return Err(PrefixError::Length { len, max });
        }
        let bits = bits_of(address) & !host_mask(len, max);
        Ok(Self { address: address_of(bits, address.is_ipv4()), len })
    }

    /// The prefix that holds this address alone.
    pub fn host(address: IpAddr) -> Self {
        Self { address, len: width(address.is_ipv4()) }
    }

    /// `0.0.0.0/0` or `::/0`.
    pub fn default_route(v4: bool) -> Self {
        Self { address: address_of(0, v4), len: 0 }
    }

    /// The first address.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// Number of leading bits.
    #[expect(clippy::len_without_is_empty, reason = "a prefix is never empty; `len` is the field's word")]
    pub fn len(&self) -> u8 {
        self.len
    }

    /// Whether this is IPv4.
    pub fn is_v4(&self) -> bool {
        self.address.is_ipv4()
    }

    /// Whether it is one single address.
    pub fn is_host(&self) -> bool {
        self.len == width(self.is_v4())
    }

    /// Whether both are of one family.
    pub fn same_family(&self, other: &Self) -> bool {
        self.is_v4() == other.is_v4()
    }

    /// Whether `address` lies within.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.is_v4() == address.is_ipv4()
            && bits_of(address) & !host_mask(self.len, width(self.is_v4())) == bits_of(self.address)
    }

    /// Whether all of `other` lies within.
    pub fn covers(&self, other: &Self) -> bool {
        self.len <= other.len && self.contains(other.address)
    }

    /// Whether the two have an address in common.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.covers(other) || other.covers(self)
    }
}

impl FromStr for Prefix {
    type Err = PrefixError;

    /// A prefix, or a bare address, which is then the prefix of itself alone.
    fn from_str(text: &str) -> Result<Self, PrefixError> {
        let syntax = || PrefixError::Syntax(text.chars().take(80).collect());
        let Some((address, len)) = text.split_once('/') else {
            return Ok(Self::host(text.parse().map_err(|_| syntax())?));
        };
        let address: IpAddr = address.parse().map_err(|_| syntax())?;
        let prefix = Self::covering(address, len.parse().map_err(|_| syntax())?)?;
        if prefix.address != address {
            return Err(PrefixError::HostBits { given: text.to_owned(), meant: prefix });
        }
        Ok(prefix)
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.len)
    }
}

impl fmt::Debug for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl serde::Serialize for Prefix {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl schemars::JsonSchema for Prefix {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Prefix".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "description": "An IPv4 or IPv6 prefix, such as 10.77.1.0/24 or fd77:1::/64.",
            "type": "string",
            "pattern": "^[0-9a-f.:]+/[0-9]{1,3}$",
        })
    }
}

impl<'de> serde::Deserialize<'de> for Prefix {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl bincode::Encode for Prefix {
    fn encode<E: bincode::enc::Encoder>(&self, e: &mut E) -> Result<(), bincode::error::EncodeError> {
        (self.address, self.len).encode(e)
    }
}

impl<C> bincode::Decode<C> for Prefix {
    fn decode<D: bincode::de::Decoder<Context = C>>(d: &mut D) -> Result<Self, bincode::error::DecodeError> {
        let (address, len) = <(IpAddr, u8)>::decode(d)?;
        let refuse = |e: String| bincode::error::DecodeError::OtherString(e);
        let prefix = Self::covering(address, len).map_err(|e| refuse(e.to_string()))?;
        if prefix.address != address {
            return Err(refuse(format!("{address}/{len} has host bits set")));
        }
        Ok(prefix)
    }
}
bincode::impl_borrow_decode!(Prefix);

#[cfg(test)]
mod tests {
    use super::*;

    fn p(text: &str) -> Prefix {
        text.parse().unwrap()
    }

    #[test]
    fn parses_and_prints_itself() {
        for text in ["10.77.1.0/24", "0.0.0.0/0", "203.0.113.14/32", "fd77:1::/64", "::/0", "2001:db8::1/128"]
        {
            assert_eq!(p(text).to_string(), text);
        }
        assert_eq!(p("10.0.0.1").to_string(), "10.0.0.1/32");
        for bad in ["", "10.0.0.0/33", "10.0.0.1/24", "::1/129", "x/8", "10.0.0.0/", "fd77::1/64"] {
            assert!(bad.parse::<Prefix>().is_err(), "{bad}");
        }
    }

    #[test]
    fn covers_and_overlaps() {
        assert!(p("10.0.0.0/8").covers(&p("10.77.1.0/24")));
        assert!(!p("10.77.1.0/24").covers(&p("10.0.0.0/8")));
        assert!(p("10.77.1.0/24").overlaps(&p("10.0.0.0/8")));
        assert!(!p("10.77.1.0/24").overlaps(&p("10.77.2.0/24")));
        assert!(!p("0.0.0.0/0").covers(&p("fd77::/64")));
        assert!(p("::/0").contains("fd77::1".parse().unwrap()));
    }
}
