//! The buffers that a worker's socket is read into. What came stays in its buffer until it is written to a TUN; meanwhile the socket
//! is read into others.

use std::io::IoSliceMut;

use quinn::udp::RecvMeta;

/// Messages taken with one call, each of which GRO may have made of many datagrams.
pub const MESSAGES: usize = 4;
/// Room for the largest of them.
const MESSAGE: usize = 65_536;
/// Messages there is room for: those of one call, and what waits for the TUN.
pub const BUFFERS: usize = 16;

/// What has come, by the numbers of the buffers that it lies in.
#[derive(Debug)]
pub struct Received {
    buffers: Vec<Vec<u8>>,
    /// By number: how often it is held.
    holds: Vec<u32>,
    /// Numbers; the last one is used first, since it is warm.
    free: Vec<usize>,
    /// What the last call has filled: which, and with what.
    filled: Vec<(usize, RecvMeta)>,
}

impl Default for Received {
    fn default() -> Self {
        Self {
            buffers: (0..BUFFERS).map(|_| vec![0; MESSAGE]).collect(),
            holds: vec![0; BUFFERS],
            free: (0..BUFFERS).collect(),
            filled: Vec::with_capacity(MESSAGES),
        }
    }
}

impl Received {
    /// Whether something more can be received.
    pub fn has_room(&self) -> bool {
        !self.free.is_empty()
    }

    /// Has free buffers, no more than `most`, filled by `receive`, which says how many it has filled from the first one on.
    pub fn fill<E>(
        &mut self,
        most: usize,
        receive: impl FnOnce(&mut [IoSliceMut<'_>], &mut [RecvMeta]) -> Result<usize, E>,
    ) -> Result<usize, E> {
        self.let_go();
        let mut numbers = [0; MESSAGES];
        let mut taken: [Vec<u8>; MESSAGES] = Default::default();
        let mut count = 0;
        while count < most.min(MESSAGES)
            && let Some(number) = self.free.pop()
        {
            numbers[count] = number;
            taken[count] = std::mem::take(&mut self.buffers[number]);
            count += 1;
        }
        let mut slices = taken.each_mut().map(|bytes| IoSliceMut::new(bytes));
        let mut meta = [RecvMeta::default(); MESSAGES];
        let received = receive(&mut slices[..count], &mut meta[..count]);
        for (number, bytes) in numbers.into_iter().zip(taken).take(count) {
            self.buffers[number] = bytes;
        }
        let filled = received.as_ref().map_or(0, |filled| count.min(*filled));
        self.filled.extend(numbers.into_iter().zip(meta).take(filled));
        numbers[..filled].iter().for_each(|number| self.holds[*number] = 1);
        self.free.extend(numbers[filled..count].iter().rev());
        received
    }

    /// A message of the last call: the number of its buffer, all of that, and what is known of the bytes.
    pub fn message(&mut self, at: usize) -> Option<(usize, &mut [u8], &mut RecvMeta)> {
        let (number, meta) = self.filled.get_mut(at)?;
        Some((*number, &mut self.buffers[*number], meta))
    }

    /// All buffers, by number.
    pub fn buffers(&self) -> &[Vec<u8>] {
        &self.buffers
    }

    /// What the last call has filled is done with, but for what is held.
    pub fn let_go(&mut self) {
        while let Some((number, _)) = self.filled.pop() {
            self.release(number);
        }
    }

    /// A buffer's bytes are to stay until [`Self::release`].
    pub fn hold(&mut self, number: usize) {
        self.holds[number] += 1;
    }

    /// Ends one [`Self::hold`].
    pub fn release(&mut self, number: usize) {
        self.holds[number] -= 1;
        if self.holds[number] == 0 {
            self.free.push(number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(received: &mut Received, messages: &[&[u8]]) -> usize {
        let filled = received.fill(MESSAGES, |slices, meta| {
            let count = messages.len().min(slices.len());
            for ((slice, meta), message) in slices.iter_mut().zip(meta).zip(messages) {
                assert_eq!(slice.len(), MESSAGE);
                slice[..message.len()].copy_from_slice(message);
                meta.len = message.len();
            }
            Ok::<_, ()>(count)
        });
        filled.unwrap()
    }

    fn message(received: &mut Received, at: usize) -> Option<(usize, Vec<u8>)> {
        received.message(at).map(|(number, bytes, meta)| (number, bytes[..meta.len].to_vec()))
    }

    #[test]
    fn what_is_held_stays_while_more_is_received() {
        let mut received = Received::default();
        assert_eq!(fill(&mut received, &[b"one", b"two"]), 2);
        let [one, two] = [0, 1].map(|at| message(&mut received, at).unwrap());
        assert_eq!((&one.1[..], &two.1[..]), (&b"one"[..], &b"two"[..]));
        assert_eq!(message(&mut received, 2), None);
        received.hold(two.0);
        received.hold(two.0);
        for _ in 0..100 {
            assert_eq!(fill(&mut received, &[b"x", b"y", b"z"]), 3);
            assert!((0..3).all(|at| message(&mut received, at).unwrap().0 != two.0));
        }
        received.release(two.0);
        assert!(received.buffers()[two.0].starts_with(b"two"));
        received.release(two.0);
        received.let_go();
        assert_eq!(received.free.len(), BUFFERS);
    }

    #[test]
    fn there_is_room_until_all_is_held_and_a_failure_takes_none() {
        let mut received = Received::default();
        let mut held = Vec::new();
        while received.has_room() {
            let filled = fill(&mut received, &[&b"m"[..]; MESSAGES - 1]);
            held.extend((0..filled).map(|at| message(&mut received, at).unwrap().0));
            (0..filled).for_each(|at| received.hold(held[held.len() - 1 - at]));
            received.let_go();
        }
        held.sort_unstable();
        assert_eq!(held, (0..BUFFERS).collect::<Vec<_>>(), "each once");
        received.release(7);
        assert!(received.has_room());
        assert_eq!(
            received.fill(MESSAGES, |slices, _| if slices.len() == 1 { Err("no") } else { Ok(0) }),
            Err("no")
        );
        assert!(received.has_room() && received.message(0).is_none());
    }
}
