use mesh_proto::ip::transport::UDP_LITE;
use proptest::prelude::*;

use super::super::packets::{checksums_hold, icmp_error, ip, packet, ping, readdressed, tcp, udp};
use super::*;

fn mapping(from: &str, to: &str) -> Mapping {
    Mapping::new(from.parse().unwrap(), to.parse().unwrap()).unwrap()
}

/// A pair of prefixes of one length, an address in the first, one elsewhere.
fn pairs() -> impl Strategy<Value = (Mapping, Mapping, IpAddr, IpAddr)> {
    (any::<bool>(), any::<u128>(), any::<u128>(), any::<u128>(), any::<u128>(), 1u8..=32).prop_map(
        |(v4, from, to, host, other, len)| {
            let address = |bits: u128| -> IpAddr {
                if v4 { Ipv4Addr::from_bits(bits as u32).into() } else { Ipv6Addr::from_bits(bits).into() }
            };
            let from = Prefix::covering(address(from), len).unwrap();
            let to = Prefix::covering(address(to), len).unwrap();
            let there = Mapping::new(from, to).unwrap();
            let back = Mapping::new(to, from).unwrap();
            // The host part of a random address, moved into the prefix.
            let any = Prefix::covering(address(host), len).unwrap();
            let within = Mapping::new(any, from).unwrap().map(address(host)).unwrap();
            (there, back, within, address(other))
        },
    )
}

fn some_packet(kind: u8, source: IpAddr, destination: IpAddr, data: &[u8], partial: bool) -> Vec<u8> {
    match kind {
        0 => udp(source, destination, 53, data, partial),
        1 => tcp(source, destination, 80, 5, 0x10, data, partial),
        2 => packet(source, destination, UDP_LITE, [&[0; 8], data].concat(), partial),
        3 => ping(source, destination),
        _ => packet(source, destination, 132, [&[7; 12], data].concat(), false),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn mapping_gives_what_whole_recomputation_gives_and_back_is_identity(
        (there, back, inside, other) in pairs(),
        kind in 0u8..5,
        data in proptest::collection::vec(any::<u8>(), 0..40),
        partial: bool,
        as_source: bool,
    ) {
        let partial = partial && kind < 3;
        let mapped = there.map(inside).unwrap();
        let (before, after) = if as_source {
            ((inside, other), (mapped, other))
        } else {
            ((other, inside), (other, mapped))
        };
        let original = some_packet(kind, before.0, before.1, &data, partial);
        let side = |mapping| if as_source {
            Rewrite { source: Some(mapping), ..Rewrite::default() }
        } else {
            Rewrite { destination: Some(mapping), ..Rewrite::default() }
        };
        let mut bytes = original.clone();
        prop_assert_eq!(rewrite(&mut bytes, &side(&there), partial), Ok(!there.is_identity()));
        let expected = some_packet(kind, after.0, after.1, &data, partial);
        prop_assert_eq!(&bytes, &expected);
        rewrite(&mut bytes, &side(&back), partial).unwrap();
        prop_assert_eq!(bytes, original);
    }

    #[test]
    fn an_icmp_error_is_mapped_inside_and_out(
        (there, back, inside, other) in pairs(),
        kind in 0u8..5,
        data in proptest::collection::vec(any::<u8>(), 0..20),
        cut in 0usize..40,
    ) {
        // The packet went from `other` to the mesh address and was mapped; the error takes the way back.
        let mapped = there.map(inside).unwrap();
        let sent = some_packet(kind, other, mapped, &data, false);
        let received = some_packet(kind, other, inside, &data, false);
        let header = if other.is_ipv4() { 20 } else { 40 };
        // Half a checksum cannot be corrected.
        prop_assume!(![3, 7, 17].contains(&cut));
        let keep = sent.len().min(header + cut);
        let mut error = icmp_error(inside, other, &received[..keep]);
        let rewritten = Rewrite {
            source: Some(&there),
            quoted_destination: std::slice::from_ref(&there),
            quoted_source: &[],
            destination: None,
        };
        rewrite(&mut error, &rewritten, false).unwrap();
        prop_assert!(checksums_hold(&error));
        let expected = icmp_error(mapped, other, &sent[..keep]);
        prop_assert_eq!(&error, &expected);
        // And towards the one who maps on arrival.
        let mut other_way = icmp_error(other, mapped, &some_packet(kind, mapped, other, &data, false)[..keep]);
        let arrival = Rewrite {
            destination: Some(&back),
            quoted_source: std::slice::from_ref(&back),
            ..Rewrite::default()
        };
        rewrite(&mut other_way, &arrival, false).unwrap();
        prop_assert_eq!(other_way, icmp_error(other, inside, &some_packet(kind, inside, other, &data, false)[..keep]));
    }

    #[test]
    fn no_bytes_inside_an_icmp_error_panic(quoted in proptest::collection::vec(any::<u8>(), 0..80), first: bool) {
        let there = [mapping("0.0.0.0/1", "128.0.0.0/1")];
        let mut quoted = quoted;
        if let Some(byte) = quoted.first_mut() {
            *byte = if first { 0x45 } else { 0x60 };
        }
        let mut error = icmp_error(ip("10.0.0.1"), ip("10.0.0.2"), &quoted);
        let both = Rewrite { quoted_source: &there, quoted_destination: &there, ..Rewrite::default() };
        rewrite(&mut error, &both, false).unwrap();
        prop_assert!(checksums_hold(&error));
    }
}

#[test]
fn a_udp_packet_without_checksum_stays_without() {
    let there = mapping("192.168.0.0/24", "10.77.1.0/24");
    let mut bytes = udp(ip("192.168.0.5"), ip("10.77.2.5"), 53, b"x", false);
    bytes[26..28].fill(0);
    rewrite(&mut bytes, &Rewrite { source: Some(&there), ..Rewrite::default() }, false).unwrap();
    assert_eq!(bytes[26..28], [0, 0]);
    assert_eq!(bytes[12..16], [10, 77, 1, 5]);
}

#[test]
fn a_udp_checksum_never_becomes_zero_by_mapping() {
    let there = mapping("192.168.0.0/24", "10.77.1.0/24");
    let mut all_ones = 0;
    for word in 0..=u16::MAX {
        let mut bytes = udp(ip("192.168.0.5"), ip("10.77.2.5"), 53, &word.to_be_bytes(), false);
        let rewritten = Rewrite { source: Some(&there), ..Rewrite::default() };
        rewrite(&mut bytes, &rewritten, false).unwrap();
        assert_ne!(bytes[26..28], [0, 0]);
        all_ones += u32::from(bytes[26..28] == [0xff, 0xff]);
    }
    assert!(all_ones > 0);
}

#[test]
fn only_the_first_fragment_has_its_transport_checksum_adjusted() {
    let there = mapping("192.168.0.0/24", "10.77.1.0/24");
    let rewritten = Rewrite { source: Some(&there), ..Rewrite::default() };
    let whole = tcp(ip("192.168.0.5"), ip("10.77.2.5"), 80, 1, 0x10, &[9; 16], false);
    let expected = readdressed(&whole, ip("10.77.1.5"), ip("10.77.2.5"), false);
    for (word, touched) in [(0x2000u16, true), (0x2010, false)] {
        let mut bytes = whole.clone();
        bytes[6..8].copy_from_slice(&word.to_be_bytes());
        rewrite(&mut bytes, &rewritten, false).unwrap();
        assert_eq!(bytes[36..38] == expected[36..38], touched);
        assert_eq!(bytes[36..38] == whole[36..38], !touched);
        assert_eq!(rewrite(&mut bytes, &rewritten, true), Err(Malformed::Transport));
    }
}

#[test]
fn prefixes_of_unequal_length_or_family_do_not_pair() {
    let p = |text: &str| text.parse::<Prefix>().unwrap();
    assert_eq!(Mapping::new(p("10.0.0.0/24"), p("10.1.0.0/25")), None);
    assert_eq!(Mapping::new(p("10.0.0.0/24"), p("fd00::/24")), None);
}
