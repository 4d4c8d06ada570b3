//! What is in a packet.

use proptest::prelude::*;

use super::*;

#[test]
fn frames_are_read_and_a_length_that_lies_is_refused() {
    assert_eq!(
        all_frames(b"\0\0\x31\x02ab\0\x31\x40\x01c\x30rest"),
        Ok(vec![b"ab".to_vec(), b"c".to_vec(), b"rest".to_vec()])
    );
    assert_eq!(all_frames(b""), Ok(vec![]));
    assert_eq!(all_frames(b"\0\0\0"), Ok(vec![]));
    let lies: [&[u8]; 8] = [
        b"\x31",
        b"\x31\x03ab",
        b"\x31\x40",
        b"\x31\x80\0\0",
        b"\x31\xff\xff\xff\xff\xff\xff\xff\xffab",
        b"\x31\x02ab\x31\x05ab",
        b"\x01",
        b"\x1c\x00",
    ];
    for bytes in lies {
        assert_eq!(all_frames(bytes), Err(Malformed), "{bytes:?}");
    }
}

proptest! {
    #[test]
    fn no_bytes_make_frames_beyond_the_packet(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let mut frames = Frames::new(0..bytes.len());
        let mut last = 0;
        while let Some(Ok(range)) = frames.next_in(&bytes) {
            prop_assert!(range.start >= last && range.end <= bytes.len());
            last = range.end;
        }
        prop_assert!(frames.next_in(&bytes).is_none());
    }
}
