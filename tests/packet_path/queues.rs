//! A TUN of several queues, each read by a thread of its own.

use mesh_node::forward::counters::Worker;
use mesh_node::io::tun::{Read, Wait};

use super::*;

/// One more queue, and the VM's end of it.
fn queue() -> (UnixDatagram, Arc<Tun>) {
    let (vm, device) = UnixDatagram::pair().unwrap();
    vm.set_read_timeout(Some(PATIENCE)).unwrap();
    (vm, Arc::new(Tun::from_fd(device.into(), "fake").unwrap().with_offloads(Offloads::ALL)))
}

/// A's device made anew, with two queues.
fn two_queues(pair: &mut Pair) -> UnixDatagram {
    let (first, second) = (queue(), queue());
    pair.a.loops.add_network(NETWORK_A, vec![first.1, second.1]).unwrap();
    pair.a.vm = first.0;
    second.0
}

#[test]
fn what_comes_out_of_either_queue_arrives_and_answers_go_into_the_first() {
    let mut pair = Pair::new();
    let other = two_queues(&mut pair);
    let [vm_a, mesh_a, mesh_b, vm_b] =
        ["192.168.100.10", "10.77.1.10", "10.77.2.20", "192.168.100.20"].map(address);
    for i in 0..10u8 {
        pair.a.send(&udp(vm_a, mesh_b, &[i]));
        assert_eq!(check(&pair.b.receive(), mesh_a, vm_b)[8..], [i]);
        other.send(&[&[0; VNET_HEADER][..], &udp(vm_a, mesh_b, &[i, i])].concat()).unwrap();
        assert_eq!(check(&pair.b.receive(), mesh_a, vm_b)[8..], [i, i]);
        pair.b.send(&udp(vm_b, mesh_a, &[i, i, i]));
        assert_eq!(check(&pair.a.receive(), mesh_b, vm_a)[8..], [i, i, i]);
    }
    // a batch is counted once it is sent
    let counted = || {
        let counts = pair.a.counters.snapshot();
        [0, 1].map(|worker| counts.worker(Worker::Outbound(NETWORK_A, worker)).packets)
    };
    let deadline = std::time::Instant::now() + PATIENCE;
    while counted() != [10, 10] {
        assert!(std::time::Instant::now() < deadline, "{:?}", counted());
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn the_threads_of_all_queues_end_at_once_when_told_to() {
    let mut pair = Pair::new();
    let (first, second) = (queue(), queue());
    let read = Arc::downgrade(&second.1);
    pair.a.loops.add_network(NETWORK_A, vec![first.1, second.1]).unwrap();
    let start = std::time::Instant::now();
    pair.a.loops.stop();
    assert!(start.elapsed() < Duration::from_secs(1));
    assert_eq!(read.strong_count(), 0, "the device goes with its last queue");
}

#[test]
fn a_queue_that_fails_ends_the_others_of_its_network() {
    let mut pair = Pair::new();
    let first = queue();
    // nothing can be read from this end
    let (_reader, writer) = std::io::pipe().unwrap();
    let broken = Arc::new(Tun::from_fd(writer.into(), "broken").unwrap());
    pair.a.loops.add_network(NETWORK_A, vec![first.1.clone(), broken]).unwrap();
    assert!(pair.a.loops.lost_networks().is_empty());
    let deadline = std::time::Instant::now() + PATIENCE;
    while pair.a.loops.lost_networks().is_empty() {
        assert!(std::time::Instant::now() < deadline, "nobody noticed");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(pair.a.loops.lost_networks(), [NETWORK_A]);
    // nobody reads the first queue any more
    std::thread::sleep(Duration::from_millis(50));
    first
        .0
        .send(&[&[0; VNET_HEADER][..], &udp(address("192.168.100.10"), address("10.77.2.20"), b"x")].concat())
        .unwrap();
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(first.1.read(&mut [0; 100], Wait::No).unwrap(), Read::Packet(VNET_HEADER + 29));
    pair.a.loops.remove_network(NETWORK_A);
    two_queues(&mut pair);
    pair.a.send(&udp(address("192.168.100.10"), address("10.77.2.20"), b"again"));
    check(&pair.b.receive(), address("10.77.1.10"), address("192.168.100.20"));
}

#[test]
fn a_network_without_a_queue_is_refused() {
    let mut pair = Pair::new();
    assert!(pair.a.loops.add_network(NETWORK_A, vec![]).is_err());
}
