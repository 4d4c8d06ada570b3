//! What is done with arbitrary bytes, for a fuzzer (`targets`) and for an ordinary test (`tests/fuzz.rs`), which keeps all of it
//! compiling and feeds it some thousands of inputs.
//!
//! Few bytes that a generator makes up are a packet, let alone an authentic one. Most bodies therefore have something genuine, which
//! the input changes where it is not zero: no bytes at all are a good case, and every other case can be reached.

mod lanes;
mod messages;
mod packets;
mod text;

/// A body.
pub type Body = fn(&[u8]);

/// All of them, each by the name of its target.
pub const ALL: &[(&str, Body)] = &[
    ("lane_packet", lanes::lane_packet),
    ("lane_frames", lanes::lane_frames),
    ("replay_window", lanes::replay_window),
    ("inner_packet", packets::inner_packet),
    ("superpacket", packets::superpacket),
    ("message", messages::message),
    ("signed_record", messages::signed_record),
    ("probe", messages::probe),
    ("config_text", text::config_text),
];

/// The body of this name.
pub fn body(name: &str) -> Body {
    let found = ALL.iter().find(|(of, _)| *of == name);
    found.expect("a target is named after its body").1
}

/// Something genuine with the bits changed that are set in `changes`; what is longer is appended.
fn changed(genuine: &[u8], changes: &[u8]) -> Vec<u8> {
    let mut bytes = genuine.to_vec();
    bytes.resize(genuine.len().max(changes.len()), 0);
    bytes.iter_mut().zip(changes).for_each(|(byte, change)| *byte ^= change);
    bytes
}

/// The first byte, which chooses a case, and the rest.
fn case(data: &[u8]) -> (u8, &[u8]) {
    data.split_first().map_or((0, data), |(first, rest)| (*first, rest))
}
