//! Which packet numbers have been seen: refuses what comes twice (RFC 6479's way), and counts what does not come.

/// Numbers remembered. 2,048 would be 2 ms at a million packets a second.
pub const SIZE: u64 = 8192;

/// A number that is missing when this many later ones may have come is called lost. GRO and several queues of a network card
/// mix the order of a train, of 64 packets at most.
pub const REORDERING: u64 = 128;

const WORD: u64 = u64::BITS as u64;
/// One word more than the window, so that a word can be cleared whole.
const WORDS: usize = (SIZE / WORD) as usize + 1;

/// What a number's arrival is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrival {
    /// For the first time.
    New,
    /// Not for the first time.
    Duplicate,
    /// Nobody knows.
    TooOld,
}

/// Packets by what became of them on the underlay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Missing for so long that they are taken for lost.
    pub lost: u64,
    /// Came after a later one.
    pub reordered: u64,
}

/// The sliding window.
#[derive(Debug)]
pub struct Window {
    seen: [u64; WORDS],
    /// One more than the highest number seen.
    next: u64,
    /// Every lower number has been judged: come, or lost.
    judged: u64,
    counts: Counts,
}

impl Default for Window {
    fn default() -> Self {
        Self { seen: [0; WORDS], next: 0, judged: 0, counts: Counts::default() }
    }
}

impl Window {
    /// Whether a number has come.
    pub(super) fn has_any(&self) -> bool {
        self.next > 0
    }

    /// Notes a number that an authentic packet bears.
    pub fn arrived(&mut self, number: u64) -> Arrival {
        if number >= self.next {
            self.advance(number);
            self.mark(number);
            return Arrival::New;
        }
        if self.next - number > SIZE {
            return Arrival::TooOld;
        }
        if self.has(number) {
            return Arrival::Duplicate;
        }
        self.mark(number);
        self.counts.reordered += 1;
        Arrival::New
    }

    /// What was counted since the last time.
    pub fn take_counts(&mut self) -> Counts {
        std::mem::take(&mut self.counts)
    }

    /// No more will come.
    pub fn close(&mut self) {
        self.judge(self.next);
    }

    fn advance(&mut self, number: u64) {
        let horizon = (number + 1).saturating_sub(REORDERING);
        self.judge(horizon.min(self.next));
        // beyond what has been seen nothing can have come
        self.counts.lost += horizon.saturating_sub(self.judged.max(self.next));
        self.judged = self.judged.max(horizon);
        let (old, new) = (self.next.saturating_sub(1) / WORD, number / WORD);
        for word in (old + 1..=new).take(WORDS) {
            self.seen[(word % WORDS as u64) as usize] = 0;
        }
        // a jump of more than the whole ring clears it all
        if new - old >= WORDS as u64 {
            self.seen = [0; WORDS];
        }
        self.next = number + 1;
    }

    /// Counts what is missing below `end`, which is no higher than `next`: a window's size at most, since `judged` follows
    /// `next`.
    fn judge(&mut self, end: u64) {
        for number in self.judged..end {
            self.counts.lost += u64::from(!self.has(number));
        }
        self.judged = self.judged.max(end);
    }

    fn has(&self, number: u64) -> bool {
        self.seen[(number / WORD % WORDS as u64) as usize] >> (number % WORD) & 1 == 1
    }

    fn mark(&mut self, number: u64) {
        self.seen[(number / WORD % WORDS as u64) as usize] |= 1 << (number % WORD);
    }
}
