//! Ratios are of the interval, and advice is given where a figure is telling, and nowhere else.

use proptest::prelude::*;

use super::*;

fn fine() -> Performance {
    let interval = Pace {
        packets: 50_000,
        busy_share: 0.3,
        waiting_share: 0.0,
        packets_per_batch: Some(60.0),
        packets_per_call: Some(20.0),
    };
    let worker = WorkerPace {
        worker: "mesh-out-0".into(),
        network: Some("default".into()),
        direction: "outbound".into(),
        interval,
        since_start: interval,
    };
    Performance {
        interval_seconds: 1.0,
        workers: vec![worker],
        tuns: vec![TunOffloads {
            network: "default".into(),
            tun: "mesh-default".into(),
            csum: true,
            tso: true,
            uso: true,
        }],
        socket: SocketOffloads { gso: true, gro: true },
        peers: vec![PeerPace {
            peer: "ph2".into(),
            datagrams: 50_000,
            path_mtu_bytes: 1400,
            ..PeerPace::default()
        }],
        queues: vec![Queue { queue: "udp_receive".into(), unit: "datagrams".into(), ..Queue::default() }],
        advice: Vec::new(),
    }
}

#[test]
fn a_node_that_is_well_gets_no_advice_and_each_telling_figure_gets_its_own() {
    assert_eq!(advice(&fine()), [""; 0]);
    type Change = fn(&mut Performance);
    let cases: &[(Change, &str)] = &[
        (|p| p.queues[0].dropped = 17, "17 datagrams dropped at udp_receive"),
        (|p| p.workers[0].interval.busy_share = 0.93, "mesh-out-0 is busy 93 %"),
        (|p| p.workers[0].interval.waiting_share = 0.4, "mesh-out-0 waits 40 %"),
        (|p| p.workers[0].interval.packets_per_call = Some(1.0), "ethtool -k"),
        (|p| p.tuns[0].uso = false, "no uso at mesh-default"),
        (|p| p.socket.gso = false, "no gso at the UDP socket: each datagram to a peer is a call of its own"),
        (|p| p.socket.gro = false, "no gro"),
        (|p| p.peers[0].lost_packets = 500, "500 of 50000 datagrams to ph2 were lost"),
        (|p| p.peers[0].path_mtu_bytes = 1200, "1200 bytes only"),
        (|p| p.workers[0].interval = Pace::default(), "ask again while it is slow"),
    ];
    for (change, told) in cases {
        let mut found = fine();
        change(&mut found);
        let advice = advice(&found);
        assert_eq!(advice.len(), 1, "{told}: {advice:?}");
        assert!(advice[0].contains(told), "{told}: {advice:?}");
    }
}

#[test]
fn a_few_pings_are_not_called_slow() {
    let mut found = fine();
    found.workers[0].interval.packets = 20;
    found.workers[0].interval.packets_per_call = Some(1.0);
    found.peers[0].datagrams = 20;
    found.peers[0].lost_packets = 2;
    assert_eq!(advice(&found), [""; 0]);
}

#[test]
fn an_offload_that_the_kernel_lacks_is_told_apart_from_one_left_out() {
    let mut without = Offloads::ALL;
    without.set(Offload::Uso, false);
    let lacks = missing_of_tun("mesh-default", Offloads::ALL, without);
    assert_eq!((lacks.len(), lacks[0].1), (1, "uso"));
    assert!(lacks[0].2.contains("this kernel lacks it (Linux 6.2"), "{lacks:?}");
    let left_out = missing_of_tun("mesh-default", without, without);
    assert!(left_out[0].2.contains("leaves it out"), "{left_out:?}");
    assert!(missing_of_socket(Offloads::ALL, without, without).is_empty());
    let none = Offloads::default();
    assert_eq!(missing_of_socket(Offloads::ALL, none, none).len(), 2);
    let refused = missing_of_socket(Offloads::ALL, Offloads::ALL, none);
    assert!(refused[0].2.contains("a device has refused it"), "{refused:?}");
}

proptest! {
    #[test]
    fn shares_are_shares_and_ratios_are_of_the_interval(
        old in (0u64..1000, 0u64..1000, 0u64..1000, 0u64..1_000_000, 0u64..1_000_000),
        more in (0u64..1000, 0u64..1000, 0u64..1000, 0u64..1_000_000, 0u64..1_000_000),
        time in 1u64..2_000_000,
    ) {
        let micros = Duration::from_micros;
        let at = |(packets, superpackets, batches, busy, waited)| WorkerSnapshot {
            packets, superpackets, batches, busy: micros(busy), waited: micros(waited),
        };
        let sum = (old.0 + more.0, old.1 + more.1, old.2 + more.2, old.3 + more.3, old.4 + more.4);
        let found = pace(at(old), at(sum), micros(time));
        prop_assert_eq!(found.packets, more.0);
        for (share, part) in [(found.busy_share, more.3), (found.waiting_share, more.4)] {
            prop_assert!((0.0..=1.0).contains(&share));
            prop_assert!(part > time || (share - part as f64 / time as f64).abs() < 1e-6);
        }
        prop_assert_eq!(found.packets_per_batch, (more.2 > 0).then(|| more.0 as f64 / more.2 as f64));
        prop_assert_eq!(found.packets_per_call, (more.1 > 0).then(|| more.0 as f64 / more.1 as f64));
    }
}
