use super::*;
use crate::Prefix;

const NOW: i64 = 1_800_000_000;

fn at(unix: i64) -> UnixTime {
    UnixTime::since_unix_epoch(std::time::Duration::from_secs(unix as u64))
}

fn ca() -> Ca {
    Ca::init(&"lab".parse().unwrap(), NOW - 1000, 3650).unwrap()
}

fn roots(ca: &Ca) -> TrustRoots {
    TrustRoots::from_pem(ca.cert_pem().as_bytes()).unwrap()
}

fn issue(ca: &Ca, key: &NodeKey, not_before: i64, not_after: i64) -> CertificateDer<'static> {
    let mut grants = Grants::default();
    grants.allow(&"default".parse().unwrap(), "10.77.1.0/24".parse().unwrap());
    grants.egress = true;
    let request = IssueRequest {
        node: "ph1".parse().unwrap(),
        grants,
        public_key: PublicKeySource::Key(key),
        not_before,
        not_after,
    };
    CertificateDer::from_pem_slice(ca.issue(&request).unwrap().as_bytes()).unwrap()
}

#[test]
fn a_certificate_proves_name_and_grants() {
    let (ca, key) = (ca(), NodeKey::generate().unwrap());
    let cert = issue(&ca, &key, NOW, NOW + 100);
    let identity = roots(&ca).verify(&[cert], at(NOW + 1)).unwrap();
    assert_eq!((identity.node.as_str(), identity.mesh.as_str()), ("ph1", "lab"));
    assert!(identity.grants.egress);
    let (default, other) = ("default".parse().unwrap(), "other".parse().unwrap());
    let prefix = |t: &str| t.parse::<Prefix>().unwrap();
    assert!(identity.grants.allows(&default, &prefix("10.77.1.0/24")));
    assert!(identity.grants.allows(&default, &prefix("10.77.1.9/32")));
    assert!(!identity.grants.allows(&default, &prefix("10.77.0.0/16")));
    assert!(!identity.grants.allows(&other, &prefix("10.77.1.0/24")), "a prefix is bound to its network");
    let signature = key.sign(b"a", b"b");
    assert!(identity.verify_signature(b"a", b"b", &signature));
    assert!(!identity.verify_signature(b"a", b"c", &signature));
}

#[test]
fn the_ca_that_vouches_says_until_when_and_another_does_not() {
    let (ours, key) = (ca(), NodeKey::generate().unwrap());
    let other = Ca::init(&"lab".parse().unwrap(), NOW - 1000, 9).unwrap();
    let chain = [issue(&ours, &key, NOW, NOW + 100)];
    let both = TrustRoots::from_pem(format!("{}{}", other.cert_pem(), ours.cert_pem()).as_bytes()).unwrap();
    assert_eq!(both.vouching_until(&chain, at(NOW)), Some(NOW - 1000 + 3650 * 86_400));
    assert_eq!(roots(&other).vouching_until(&chain, at(NOW)), None);
}

#[test]
fn each_refusal_has_its_reason() {
    let (ca_1, key) = (ca(), NodeKey::generate().unwrap());
    let cert = issue(&ca_1, &key, NOW, NOW + 100);
    let reason =
        |chain: &[CertificateDer<'_>], ca: &Ca, now| roots(ca).verify(chain, at(now)).unwrap_err().reason();
    let chain = [cert];
    assert_eq!(reason(&chain, &ca_1, NOW + 101), "certificate_expired");
    assert_eq!(reason(&chain, &ca_1, NOW - 10), "certificate_not_yet_valid");
    assert_eq!(
        reason(&chain, &Ca::init(&"evil".parse().unwrap(), NOW - 1000, 9).unwrap(), NOW + 1),
        "unknown_ca"
    );
    // another CA of the same name
    assert!(["unknown_ca", "bad_signature"].contains(&reason(&chain, &ca(), NOW + 1)));
    assert_eq!(reason(&[], &ca_1, NOW + 1), "bad_certificate");
    assert_eq!(reason(&[CertificateDer::from(vec![1, 2, 3])], &ca_1, NOW + 1), "bad_certificate");
    let ca_cert = roots(&ca_1).certificates()[0].clone();
    assert_eq!(reason(&[ca_cert], &ca_1, NOW + 1), "no_name");
}

#[test]
fn files_come_back_as_they_were() {
    let ca_1 = ca();
    let again = Ca::from_pem(ca_1.cert_pem(), &ca_1.key_pem()).unwrap();
    assert_eq!(again.mesh().as_str(), "lab");
    assert!(Ca::from_pem(ca_1.cert_pem(), &ca().key_pem()).is_err(), "another CA's key");
    let key = NodeKey::from_pem(&NodeKey::generate().unwrap().to_pem().unwrap()).unwrap();
    let cert = issue(&again, &key, NOW, NOW + 100);
    assert!(roots(&ca_1).verify(&[cert], at(NOW + 1)).is_ok());
}

#[test]
fn grants_that_cannot_be_read_allow_nothing() {
    for bad in [
        "",
        "v2\nnode=a",
        "v1",
        "v1\nnode=a\nnetwork=x prefix=10.0.0.0/8",
        "v1\nnode=a\nroot=yes",
        "v1\nnode=a\nnetwork=x prefix=10.0.0.0/8 le 7",
    ] {
        assert!(Grants::parse(bad).is_err(), "{bad:?}");
    }
    for bad in [&b""[..], b"\x0c", b"\x0c\x05v1", b"\x0c\x84\0\0\0\x01v", b"\x13\x02v1", b"\x0c\x82\x01"] {
        assert!(grants::from_der(bad).is_none());
    }
}

proptest::proptest! {
    #[test]
    fn grants_survive_their_text(nets in proptest::collection::vec((0u8..4, 0u32.., 0u8..=32), 0..8), egress: bool) {
        let mut grants = Grants { egress, ..Grants::default() };
        for (net, bits, len) in nets {
            let prefix = Prefix::covering(std::net::Ipv4Addr::from(bits).into(), len).unwrap();
            grants.allow(&format!("net{net}").parse().unwrap(), prefix);
        }
        let node: NodeId = "ph1".parse().unwrap();
        let text = grants.to_text(&node);
        proptest::prop_assert_eq!(Grants::parse(&text).unwrap(), (node.clone(), grants.clone()));
        proptest::prop_assert_eq!(grants::from_der(&grants::to_der(&text)).unwrap(), (node, grants));
    }
}
