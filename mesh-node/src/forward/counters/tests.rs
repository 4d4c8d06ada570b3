use mesh_proto::Prefix;
use mesh_proto::limits::MAX_WORKERS;

use super::*;
use crate::forward::fib::Egress;

#[test]
fn what_is_counted_is_read() {
    let counters = Counters::new(2);
    let mut drops = Drops::default();
    drops.add(DropReason::SourceNotOwned, 2);
    counters.dropped(Direction::Inbound, &drops);
    let count = TrafficCount { packets: 3, bytes: 300 };
    counters.traffic(NetworkIx(63), Flow::Transmit, count);
    counters.traffic(NetworkIx(255), Flow::Transmit, count);
    counters.mapped(Direction::Outbound, NetworkIx(63), 3);
    let batch = Batch { packets: 5, superpackets: 1, busy: Duration::from_micros(7) };
    let second = Worker::Outbound(NetworkIx(63), 1);
    counters.batch(second, batch);
    counters.batch(second, batch);
    counters.waited(second, Duration::from_micros(3));
    for nobody in [Worker::Outbound(NetworkIx(63), 2), Worker::Outbound(NetworkIx(64), 0), Worker::Lanes(2)] {
        counters.batch(nobody, batch);
    }
    let read = counters.snapshot();
    let dropped: Vec<_> = read.inbound.dropped.iter().filter(|(_, n)| *n > 0).collect();
    assert_eq!(dropped, [&(DropReason::SourceNotOwned, 2)]);
    assert_eq!((read.inbound.all_dropped(), read.outbound.all_dropped()), (2, 0));
    let network = read.network(NetworkIx(63));
    assert_eq!((network.flow(Flow::Transmit), network.flow(Flow::Receive).packets), (count, 0));
    assert_eq!((network.mapped(Direction::Outbound), network.mapped(Direction::Inbound)), (3, 0));
    assert_eq!(read.network(NetworkIx(255)), NetworkSnapshot::default());
    let pinned = Pinned { to: Prefix::default_route(true), egress: Egress::Own, flows: 4 };
    counters.pin(NetworkIx(3), &[pinned]);
    assert_eq!(*counters.pinned(NetworkIx(3)), [pinned]);
    assert_eq!(*counters.pinned(NetworkIx(2)), []);
    let worker = read.worker(second);
    assert_eq!((worker.packets, worker.batches, worker.busy), (10, 2, Duration::from_micros(14)));
    assert_eq!(worker.waited, Duration::from_micros(3));
    for other in [Worker::Outbound(NetworkIx(63), 0), Worker::Outbound(NetworkIx(62), 1), Worker::Inbound] {
        assert_eq!(read.worker(other), WorkerSnapshot::default());
    }
}

#[test]
fn the_workers_that_exist_are_listed_and_a_thread_can_bear_the_name_of_each() {
    let counters = Counters::new(MAX_WORKERS);
    assert_eq!(counters.snapshot().inbound_workers().collect::<Vec<_>>(), [Worker::Inbound]);
    (0..MAX_WORKERS).for_each(|_| counters.add_lanes_worker());
    let read = counters.snapshot();
    let networks = (0..MAX_NETWORKS).map(|n| NetworkIx(n as u8));
    let outbound: Vec<_> = networks.flat_map(|network| read.outbound_workers(network)).collect();
    let inbound: Vec<_> = read.inbound_workers().collect();
    let n = usize::from(MAX_WORKERS);
    assert_eq!((outbound.len(), inbound.len()), (MAX_NETWORKS * n, 1 + n));
    let names: Vec<_> = outbound.iter().chain(&inbound).map(|worker| worker.name()).collect();
    assert!(names.iter().all(|name| name.len() <= 15));
    assert_eq!((&*names[1], &*names[n]), ("mesh-out-0.1", "mesh-out-1"));
    assert_eq!(inbound[1..3].iter().map(|w| w.name()).collect::<Vec<_>>(), ["mesh-lanes", "mesh-lanes.1"]);
    let once: std::collections::BTreeSet<_> = names.iter().collect();
    assert_eq!(once.len(), names.len());
}

#[test]
fn a_peer_s_egress_is_counted_per_network_and_direction() {
    let counters = PeerCounters::default();
    let count = TrafficCount { packets: 1, bytes: 84 };
    counters.add_egress(Direction::Outbound, NetworkIx(2), count);
    assert_eq!(counters.read_egress(Direction::Outbound, NetworkIx(2)), count);
    for (direction, network) in
        [(Direction::Inbound, 2), (Direction::Outbound, 1), (Direction::Outbound, 255)]
    {
        assert_eq!(counters.read_egress(direction, NetworkIx(network)), TrafficCount::default());
    }
}

#[test]
fn every_reason_has_its_own_number_and_label() {
    for (number, reason) in DropReason::ALL.iter().enumerate() {
        assert_eq!(*reason as usize, number);
    }
    let labels: std::collections::BTreeSet<_> = DropReason::ALL.iter().map(|r| r.as_str()).collect();
    assert_eq!(labels.len(), DropReason::ALL.len());
}
