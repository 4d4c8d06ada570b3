//! The bodies of the fuzz targets with some thousands of inputs each, and with those that were found to break something.

use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use proptest::test_runner::TestRunner;

#[path = "fuzz/src/lib.rs"]
#[expect(unreachable_pub, reason = "it is a library to the targets")]
mod bodies;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz")
}

/// Anything; and mostly zeros, which leave most of something genuine as it is.
fn any_input() -> impl Strategy<Value = Vec<u8>> {
    let sparse = prop_oneof![9 => Just(0u8), 1 => any::<u8>()];
    let few =
        (0u8..=255, 0usize..1000, prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..5));
    let changed = few.prop_map(|(case, len, changes)| {
        let mut data = vec![0; len + 1];
        changes.iter().for_each(|(at, value)| data[at.index(len + 1)] = *value);
        data[0] = case;
        data
    });
    prop_oneof![
        1 => prop::collection::vec(any::<u8>(), 0..400),
        1 => prop::collection::vec(sparse, 0..400),
        4 => changed,
    ]
}

fn bounded(name: &str) {
    let body = bodies::body(name);
    for found in fs::read_dir(folder().join("found").join(name)).into_iter().flatten() {
        let path = found.expect("a file").path();
        println!("{}", path.display());
        body(&fs::read(path).expect("what is in it"));
    }
    let mut runner = TestRunner::new(ProptestConfig { cases: 3000, ..ProptestConfig::default() });
    let run = runner.run(&any_input(), |data| {
        body(&data);
        Ok(())
    });
    run.unwrap_or_else(|failure| panic!("{name}: {failure}"));
}

#[test]
fn no_bytes_are_a_packet_of_a_lane_but_those_that_were_sealed() {
    bounded("lane_packet");
}

#[test]
fn an_authentic_packet_may_hold_anything() {
    bounded("lane_frames");
}

#[test]
fn any_numbers_come_once_at_most() {
    bounded("replay_window");
}

#[test]
fn any_bytes_may_be_an_inner_packet() {
    bounded("inner_packet");
}

#[test]
fn any_superpacket_is_cut_and_joined_or_refused() {
    bounded("superpacket");
}

#[test]
fn any_bytes_may_be_a_control_message() {
    bounded("message");
}

#[test]
fn no_record_is_taken_but_what_was_signed_and_granted() {
    bounded("signed_record");
}

#[test]
fn any_bytes_may_be_a_probe() {
    bounded("probe");
}

#[test]
fn any_text_may_be_a_configuration() {
    bounded("config_text");
}

#[test]
fn each_body_has_a_target_and_each_target_a_body() {
    let manifest = fs::read_to_string(folder().join("Cargo.toml")).expect("the manifest of the targets");
    let mut targets: Vec<String> = fs::read_dir(folder().join("targets"))
        .expect("targets")
        .map(|file| file.expect("a file").path().file_stem().expect("a name").to_string_lossy().into_owned())
        .collect();
    targets.sort();
    let mut names: Vec<&str> = bodies::ALL.iter().map(|(name, _)| *name).collect();
    for name in &names {
        assert!(manifest.contains(&format!("name = \"{name}\"")), "{name} is not in the manifest");
    }
    names.sort_unstable();
    assert_eq!(targets, names);
}
