use mesh_proto::Prefix;

use super::*;
use crate::forward::fib::Egress;

#[test]
fn what_is_counted_is_read() {
    let counters = Counters::new();
    let mut drops = Drops::default();
    drops.add(DropReason::SourceNotOwned, 2);
    counters.dropped(Direction::Inbound, &drops);
    let count = TrafficCount { packets: 3, bytes: 300 };
    counters.traffic(NetworkIx(63), Flow::Transmit, count);
    counters.traffic(NetworkIx(255), Flow::Transmit, count);
    counters.mapped(Direction::Outbound, NetworkIx(63), 3);
    let batch = Batch { packets: 5, superpackets: 1, busy: Duration::from_micros(7) };
    counters.batch(Worker::Outbound(NetworkIx(63)), batch);
    counters.batch(Worker::Outbound(NetworkIx(63)), batch);
    counters.waited(Worker::Outbound(NetworkIx(63)), Duration::from_micros(3));
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
    let worker = read.worker(Worker::Outbound(NetworkIx(63)));
    assert_eq!((worker.packets, worker.batches, worker.busy), (10, 2, Duration::from_micros(14)));
    assert_eq!(worker.waited, Duration::from_micros(3));
    assert_eq!(read.worker(Worker::Inbound), WorkerSnapshot::default());
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
