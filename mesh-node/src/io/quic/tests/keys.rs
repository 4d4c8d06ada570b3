//! Keys of lanes, as connections come to them: never the same ones twice, whatever two nodes have in common.

use std::collections::BTreeSet;

use super::*;
use crate::tunnel::lane::cipher::Cipher;
use crate::tunnel::lane::keys::{Lane, Ratchet, Side};
use crate::tunnel::lane::{HEADER, TAG, probe};

/// The secrets of a connection that `a` makes to `b`, as each of them has them.
async fn connected(a: &mut Node, b: &mut Node) -> [Secrets; 2] {
    a.dial(b.address(), None);
    let ((_, of_a), (_, of_b)) = (a.up().await, b.up().await);
    [of_a, of_b]
}

/// All lanes that two ends make of their secrets, with two workers each; those of one lane side by side.
fn lanes([dialer, acceptor]: &[Secrets; 2], cipher: Cipher) -> Vec<[Lane; 2]> {
    let ends = [(dialer, Side::Client), (acceptor, Side::Server)];
    let mut lanes = Vec::new();
    for worker in [0, 1] {
        let of =
            |(of, side): (&Secrets, _)| Ratchet::new(of.lanes.bytes(), b"both offers", worker, cipher, side);
        let mut ratchets = ends.map(of);
        lanes.extend((0..3).map(|_| ratchets.each_mut().map(Ratchet::next_lane)));
    }
    lanes.push(ends.map(|(of, side)| probe::lane(of.probes.bytes(), side)));
    lanes
}

/// What a lane's end makes of the same bytes, as its first packet.
fn first_packet(lane: &mut Lane) -> Vec<u8> {
    let mut packet = vec![0; HEADER + 32 + TAG];
    lane.sealer.seal(&mut packet).unwrap();
    packet
}

#[tokio::test]
async fn no_restart_reboot_or_clone_of_a_node_comes_to_a_key_again() {
    let ca = ca("lab");
    let (ph1, ph2) = (Spec::good("ph1", &ca), Spec::good("ph2", &ca));
    let (mut a, mut b) = (ph1.start(), ph2.start());
    // the same connection twice, and the other way round
    let mut all = vec![connected(&mut a, &mut b).await, connected(&mut a, &mut b).await];
    all.push(connected(&mut b, &mut a).await);
    // a clone of each, with the key and all it knows, while the other one runs: to the node, and to the clone
    let mut clone_of_a = ph1.start_with(copy(&a.credentials));
    let mut clone_of_b = ph2.start_with(copy(&b.credentials));
    all.push(connected(&mut clone_of_a, &mut b).await);
    all.push(connected(&mut a, &mut clone_of_b).await);
    all.push(connected(&mut clone_of_a, &mut clone_of_b).await);
    // both start anew, as after a reboot that has lost the generation
    let (mut again, mut there) = (ph1.start_with(copy(&a.credentials)), ph2.start_with(copy(&b.credentials)));
    drop((a, b));
    assert_eq!(again.context.hello.generation, clone_of_a.context.hello.generation);
    all.push(connected(&mut again, &mut there).await);

    let mut secrets = BTreeSet::new();
    let (mut ids, mut packets) = (BTreeSet::new(), BTreeSet::new());
    for ends in &all {
        let [dialer, acceptor] = ends;
        assert_eq!(dialer.lanes.bytes(), acceptor.lanes.bytes());
        assert_eq!(dialer.probes.bytes(), acceptor.probes.bytes());
        assert!(secrets.insert(*dialer.lanes.bytes()));
        assert!(secrets.insert(*dialer.probes.bytes()), "probes share a secret");
        for lane in lanes(ends, Cipher::ChaCha20Poly1305).iter_mut().flatten() {
            assert!(ids.insert(lane.id), "an ID comes again");
            // the same number, and plaintext: the same bytes only if key and nonce were
            assert!(packets.insert(first_packet(lane)[HEADER..].to_vec()), "a key comes again");
        }
    }
    assert_eq!(packets.len(), all.len() * 7 * 2);
}

#[tokio::test]
async fn what_is_sealed_on_one_connection_opens_on_no_other_and_on_no_lane_for_probes() {
    let ca = ca("lab");
    let (mut a, mut b) = (Spec::good("ph1", &ca).start(), Spec::good("ph2", &ca).start());
    let all = [connected(&mut a, &mut b).await, connected(&mut a, &mut b).await];
    for cipher in Cipher::ALL {
        let mut lanes: Vec<[Lane; 2]> = all.iter().flat_map(|ends| lanes(ends, cipher)).collect();
        for from in 0..lanes.len() {
            let packet = first_packet(&mut lanes[from][0]);
            for (to, [_, acceptor]) in lanes.iter_mut().enumerate() {
                let result = acceptor.opener.open(&mut packet.clone());
                assert_eq!(result.is_ok(), from == to, "{cipher:?}: from {from} to {to}");
            }
        }
    }
}

#[tokio::test]
async fn all_that_both_ends_have_shown_and_said_is_in_their_secrets() {
    let ca = ca("lab");
    let (mut a, mut b) = (Spec::good("ph1", &ca).start(), Spec::good("ph2", &ca).start());
    a.dial(b.address(), None);
    let (connection, genuine) = a.up().await;
    b.up().await;
    let (dialer, acceptor) = (&a.context.hello, &b.context.hello);
    let certificate = a.context.certificate.as_ref();
    let of = |certificate: &[u8], dialer: &Hello, acceptor: &Hello| {
        let Secrets { lanes, probes } = Secrets::export(&connection, certificate, dialer, acceptor).unwrap();
        [*lanes.bytes(), *probes.bytes()]
    };
    assert_eq!(of(certificate, dialer, acceptor), [*genuine.lanes.bytes(), *genuine.probes.bytes()]);
    let next = |hello: &Hello| Hello { generation: hello.generation + 1, ..hello.clone() };
    let all = [
        of(certificate, dialer, acceptor),
        of(b.context.certificate.as_ref(), dialer, acceptor),
        of(certificate, &next(dialer), acceptor),
        of(certificate, dialer, &next(acceptor)),
        of(certificate, acceptor, dialer),
    ];
    let different: BTreeSet<_> = all.iter().flatten().collect();
    assert_eq!(different.len(), 2 * all.len());
}
