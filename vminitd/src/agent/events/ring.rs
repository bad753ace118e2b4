//! The events of this boot, as far back as there is room: numbered, and safe from the death of
//! whoever writes.
//!
//! Owns: the layout of the memory, which outlives the writer; see the picture.
//! Promises: a writer that is killed between any two stores, or in the middle of one that copies
//! bytes, leaves the events from `oldest` to `newest` whole; numbers have no gap and none is used
//! twice; an event that was appended for a mark ([`Ring::append`]) can be told from one that was not,
//! by the mark alone, also when it has left the ring since.
//! Never: keeps time, encodes, or does I/O: [`Memory`] is whatever it is given.
//!
//! ```text
//! words   0 MAGIC | 1 OLDEST | 2 NEWEST | 3 TICKET | 16.. ABORTED
//!         64..    a slot of 3 words for each number modulo the slots: start, bytes, ticket
//! bytes   behind the slots: a byte ring; `start` counts all bytes ever, and is taken modulo its size
//! ```
//!
//! An append: TICKET+1, the caller's mark = that ticket, OLDEST past what has to go, slot, bytes,
//! NEWEST. The last store alone makes the event one; until then nobody looks at slot and bytes.
//!
//! **The mark.** Whether an event was published has to be known for longer than it stays in the
//! ring, so it is kept with the container. Two memories cannot be changed in one store, therefore
//! the mark is no bit but a ticket, drawn for one attempt and written down before it. An attempt
//! came to its end if its ticket is not above the newest event's and was not aborted; a writer can
//! abort only the attempt that it dies in, and the next append writes that one down. So many
//! are remembered as writers may die in a row, by far ([`ABORTED`]).

/// Where the ring lives. Words and bytes are the same memory.
pub trait Memory {
    /// The 64-bit word of this index.
    fn word(&self, index: usize) -> u64;
    /// Sets it, in one piece, in order with everything else that is stored.
    fn set_word(&mut self, index: usize, value: u64);
    /// Copies bytes out.
    fn read(&self, at: usize, into: &mut [u8]);
    /// Copies bytes in, not in one piece.
    fn write(&mut self, at: usize, from: &[u8]);
}

/// How much fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Events.
    pub slots: usize,
    /// Bytes of all events together; a multiple of 8.
    pub bytes: usize,
}

impl Size {
    /// Bytes of memory that a ring of this size needs.
    pub const fn memory(self) -> usize {
        self.data() + self.bytes
    }

    const fn data(self) -> usize {
        (FIRST_SLOT + self.slots * SLOT_WORDS) * 8
    }
}

/// Written last when a ring is made: what is in front of it is one.
const MAGIC: u64 = u64::from_be_bytes(*b"vmevent1");
const MAGIC_AT: usize = 0;
const OLDEST: usize = 1;
const NEWEST: usize = 2;
const TICKET: usize = 3;
const FIRST_ABORTED: usize = 16;
const FIRST_SLOT: usize = 64;
const SLOT_WORDS: usize = 3;

/// Aborted attempts that are remembered. init gives up after ten agents in a row that die before
/// they serve, and one that serves has looked at every mark.
const ABORTED: usize = 32;

/// See the module.
#[derive(Debug)]
pub struct Ring<M> {
    memory: M,
    size: Size,
}

/// Why an event is not in the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// It has made room for others.
    Gone {
        /// The oldest that is there.
        oldest: u64,
    },
    /// It does not exist yet.
    Ahead {
        /// The newest; 0 when there is none.
        newest: u64,
    },
}

/// One event's place.
#[derive(Clone, Copy, Debug)]
struct Slot {
    start: u64,
    bytes: usize,
    ticket: u64,
}

impl<M: Memory> Ring<M> {
    /// Goes on with what is there, or makes an empty ring in memory that is all 0.
    pub fn open(memory: M, size: Size) -> Self {
        let mut ring = Self { memory, size };
        if ring.memory.word(MAGIC_AT) != MAGIC {
            ring.memory.set_word(OLDEST, 1);
            ring.memory.set_word(MAGIC_AT, MAGIC);
        }
        ring
    }

    /// The first event that is there; one past [`Self::newest`] when there is none.
    pub fn oldest(&self) -> u64 {
        self.memory.word(OLDEST)
    }

    /// The last event; 0 when there has been none.
    pub fn newest(&self) -> u64 {
        self.memory.word(NEWEST)
    }

    /// The event of this number.
    pub fn get(&self, number: u64) -> Result<Vec<u8>, Missing> {
        let (oldest, newest) = (self.oldest(), self.newest());
        if number > newest {
            return Err(Missing::Ahead { newest });
        }
        if number < oldest {
            return Err(Missing::Gone { oldest });
        }
        let slot = self.slot(number);
        let mut event = vec![0; slot.bytes];
        let (at, first) = self.place(slot);
        let (head, tail) = event.split_at_mut(first);
        self.memory.read(at, head);
        self.memory.read(self.size.data(), tail);
        Ok(event)
    }

    /// Appends an event; returns its number. `make` is given that number, `mark` writes the ticket
    /// down where [`Self::was_appended`] will be asked for it.
    ///
    /// # Panics
    /// When the event alone does not fit: the caller's limit is below the ring's size.
    pub fn append(&mut self, make: impl FnOnce(u64) -> Vec<u8>, mark: impl FnOnce(u64)) -> u64 {
        let number = self.newest() + 1;
        let event = make(number);
        assert!(event.len() <= self.size.bytes, "an event of {} bytes", event.len());
        self.settle();
        let ticket = self.memory.word(TICKET) + 1;
        self.memory.set_word(TICKET, ticket);
        mark(ticket);
        let start = self.make_room(number, event.len());
        let slot = Slot { start, bytes: event.len(), ticket };
        self.set_slot(number, slot);
        let (at, first) = self.place(slot);
        self.memory.write(at, &event[..first]);
        self.memory.write(self.size.data(), &event[first..]);
        self.memory.set_word(NEWEST, number);
        number
    }

    /// Whether the attempt of this ticket came to its end; 0 is no ticket.
    pub fn was_appended(&self, ticket: u64) -> bool {
        ticket != 0 && ticket <= self.last_ticket() && !self.aborted().any(|one| one == ticket)
    }

    /// Writes down the attempt that the writer before died in, before another ticket is drawn.
    fn settle(&mut self) {
        let ticket = self.memory.word(TICKET);
        if ticket == self.last_ticket() || self.aborted().any(|one| one == ticket) {
            return;
        }
        let oldest = (FIRST_ABORTED..FIRST_ABORTED + ABORTED)
            .min_by_key(|index| self.memory.word(*index))
            .unwrap_or(FIRST_ABORTED);
        self.memory.set_word(oldest, ticket);
    }

    fn aborted(&self) -> impl Iterator<Item = u64> {
        (FIRST_ABORTED..FIRST_ABORTED + ABORTED).map(|index| self.memory.word(index))
    }

    /// The newest event's ticket. Its slot stays as it is until the number a whole ring later.
    fn last_ticket(&self) -> u64 {
        match self.newest() {
            0 => 0,
            newest => self.slot(newest).ticket,
        }
    }

    /// Lets events go until there is a slot and room for these bytes; returns where they start.
    fn make_room(&mut self, number: u64, bytes: usize) -> u64 {
        let newest = number - 1;
        let start = match newest {
            0 => 0,
            _ => {
                let last = self.slot(newest);
                last.start + last.bytes as u64
            }
        };
        let mut oldest = self.oldest();
        while oldest <= newest {
            let used = start - self.slot(oldest).start;
            let fits = used + bytes as u64 <= self.size.bytes as u64
                && newest - oldest + 1 < self.size.slots as u64;
            if fits {
                break;
            }
            oldest += 1;
        }
        // All at once: whoever dies here has let go what had to go anyway.
        self.memory.set_word(OLDEST, oldest);
        start
    }

    /// Where the slot's bytes begin, and how many of them lie there; the others are at the ring's
    /// beginning.
    fn place(&self, slot: Slot) -> (usize, usize) {
        let within = (slot.start % self.size.bytes as u64) as usize;
        (self.size.data() + within, slot.bytes.min(self.size.bytes - within))
    }

    fn slot_at(&self, number: u64) -> usize {
        FIRST_SLOT + (number % self.size.slots as u64) as usize * SLOT_WORDS
    }

    fn slot(&self, number: u64) -> Slot {
        let at = self.slot_at(number);
        let word = |offset| self.memory.word(at + offset);
        // The bound is a matter of memory safety for nobody: a slot is whole, or not looked at.
        let bytes = (word(1) as usize).min(self.size.bytes);
        Slot { start: word(0), bytes, ticket: word(2) }
    }

    fn set_slot(&mut self, number: u64, slot: Slot) {
        let at = self.slot_at(number);
        self.memory.set_word(at, slot.start);
        self.memory.set_word(at + 1, slot.bytes as u64);
        self.memory.set_word(at + 2, slot.ticket);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};
    use std::rc::Rc;

    use proptest::prelude::*;

    use super::*;

    const SIZE: Size = Size { slots: 5, bytes: 64 };

    /// Memory whose writer can be killed: after `steps` more stores (a byte each, for bytes) nothing
    /// is stored any more.
    #[derive(Clone)]
    struct Mortal {
        bytes: Rc<RefCell<Vec<u8>>>,
        steps: Rc<Cell<u64>>,
    }

    impl Mortal {
        fn new() -> Self {
            let bytes = Rc::new(RefCell::new(vec![0; SIZE.memory()]));
            Self { bytes, steps: Rc::new(Cell::new(u64::MAX)) }
        }

        fn alive(&self) -> bool {
            let steps = self.steps.get();
            self.steps.set(steps.saturating_sub(1));
            steps > 0
        }
    }

    impl Memory for Mortal {
        fn word(&self, index: usize) -> u64 {
            let bytes = self.bytes.borrow();
            u64::from_le_bytes(bytes[index * 8..index * 8 + 8].try_into().unwrap())
        }

        fn set_word(&mut self, index: usize, value: u64) {
            if self.alive() {
                self.bytes.borrow_mut()[index * 8..index * 8 + 8]
                    .copy_from_slice(&value.to_le_bytes());
            }
        }

        fn read(&self, at: usize, into: &mut [u8]) {
            into.copy_from_slice(&self.bytes.borrow()[at..at + into.len()]);
        }

        fn write(&mut self, at: usize, from: &[u8]) {
            for (offset, byte) in from.iter().enumerate() {
                if self.alive() {
                    self.bytes.borrow_mut()[at + offset] = *byte;
                }
            }
        }
    }

    /// What happens to a ring.
    #[derive(Clone, Copy, Debug)]
    enum Step {
        /// An event for this mark, of so many bytes, by a writer that dies after so many stores.
        Once { mark: usize, bytes: usize, dies_after: Option<u64> },
        /// An event without a mark.
        Plain { bytes: usize, dies_after: Option<u64> },
        /// Events are wanted from this one on.
        Look { from: u64 },
    }

    fn steps() -> impl Strategy<Value = Step> {
        let dies = || proptest::option::weighted(0.4, 0..80u64);
        prop_oneof![
            4 => (0..12usize, 1..=64usize, dies())
                .prop_map(|(mark, bytes, dies_after)| Step::Once { mark, bytes, dies_after }),
            3 => (1..=40usize, dies()).prop_map(|(bytes, dies_after)| Step::Plain { bytes, dies_after }),
            1 => (0..60u64).prop_map(|from| Step::Look { from }),
        ]
    }

    /// The model: all events ever, in order, and how many of the last ones fit.
    #[derive(Default)]
    struct Model {
        events: Vec<Vec<u8>>,
        /// Nothing older was let go for no reason: the first that must still be there. (A writer
        /// that died may have made room for an event that never came.)
        first: u64,
    }

    impl Model {
        fn newest(&self) -> u64 {
            self.events.len() as u64
        }

        /// The first of the last events that fit when another of `bytes` comes.
        fn first_with(&self, bytes: usize) -> u64 {
            let (mut first, mut room) = (self.newest() + 1, SIZE.bytes - bytes);
            let mut slots = SIZE.slots - 1;
            for event in self.events.iter().rev() {
                if event.len() > room || slots == 0 {
                    break;
                }
                (first, room, slots) = (first - 1, room - event.len(), slots - 1);
            }
            first
        }
    }

    fn filled(number: u64, bytes: usize) -> Vec<u8> {
        (0..bytes).map(|at| (number as usize * 31 + at) as u8).collect()
    }

    fn check(ring: &Ring<Mortal>, model: &Model) -> Result<(), TestCaseError> {
        prop_assert_eq!(ring.newest(), model.newest());
        prop_assert!(ring.oldest() <= model.first.max(1), "{} is gone", model.first);
        for number in ring.oldest()..=ring.newest() {
            prop_assert_eq!(&ring.get(number).unwrap(), &model.events[number as usize - 1]);
        }
        Ok(())
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 1024, ..ProptestConfig::default() })]

        /// Writers that are killed at any store: what was published is whole and in order, what was
        /// published for a mark is so exactly once, and what was not is found not to be.
        #[test]
        fn killed_writers_leave_whole_events_and_each_mark_is_published_once(
            script in proptest::collection::vec(steps(), 0..60),
        ) {
            let memory = Mortal::new();
            let mut ring = Ring::open(memory.clone(), SIZE);
            let mut model = Model::default();
            let mut marks = [0u64; 12];
            let mut published = [false; 12];
            for step in script {
                let (bytes, dies_after, mark) = match step {
                    Step::Once { mark, bytes, dies_after } => (bytes, dies_after, Some(mark)),
                    Step::Plain { bytes, dies_after } => (bytes, dies_after, None),
                    Step::Look { from } => {
                        match ring.get(from) {
                            Ok(event) => prop_assert_eq!(&event, &model.events[from as usize - 1]),
                            Err(Missing::Ahead { newest }) => {
                                prop_assert!(from > newest && newest == model.newest());
                            }
                            Err(Missing::Gone { oldest }) => prop_assert!(from < oldest),
                        }
                        continue;
                    }
                };
                if let Some(mark) = mark {
                    prop_assert_eq!(ring.was_appended(marks[mark]), published[mark]);
                    if published[mark] {
                        continue;
                    }
                }
                memory.steps.set(dies_after.unwrap_or(u64::MAX));
                model.first = model.first.max(model.first_with(bytes));
                ring.append(|number| filled(number, bytes), |ticket| {
                    if let Some(mark) = mark && memory.alive() {
                        marks[mark] = ticket;
                    }
                });
                let died = memory.steps.get() == 0;
                memory.steps.set(u64::MAX);
                if died {
                    ring = Ring::open(memory.clone(), SIZE);
                }
                // The last store decides, and only it.
                let came = ring.newest() > model.newest();
                prop_assert!(came || died);
                if came {
                    let number = model.newest() + 1;
                    model.events.push(filled(number, bytes));
                    if let Some(mark) = mark {
                        published[mark] = true;
                    }
                }
                check(&ring, &model)?;
                for (mark, ticket) in marks.iter().enumerate() {
                    prop_assert_eq!(ring.was_appended(*ticket), published[mark], "mark {}", mark);
                }
            }
        }
    }

    #[test]
    fn writer_killed_while_it_makes_the_ring_leaves_one_to_be_made() {
        for steps in 0..3 {
            let memory = Mortal::new();
            memory.steps.set(steps);
            drop(Ring::open(memory.clone(), SIZE));
            memory.steps.set(u64::MAX);
            let mut ring = Ring::open(memory, SIZE);
            assert_eq!((ring.oldest(), ring.newest()), (1, 0));
            assert_eq!(ring.get(1), Err(Missing::Ahead { newest: 0 }));
            assert_eq!(ring.append(|_| b"first".to_vec(), |_| ()), 1);
            assert_eq!(ring.get(1).unwrap(), b"first");
        }
    }

    #[test]
    fn slots_and_bytes_are_each_used_to_the_last() {
        let mut ring = Ring::open(Mortal::new(), SIZE);
        for _ in 0..SIZE.slots + 1 {
            ring.append(|_| vec![1; 2], |_| ());
        }
        assert_eq!((ring.oldest(), ring.newest()), (2, 6));
        ring.append(|_| vec![2; SIZE.bytes], |_| ());
        assert_eq!((ring.oldest(), ring.newest()), (7, 7));
        assert_eq!(ring.get(7).unwrap(), vec![2; SIZE.bytes]);
        assert_eq!(ring.get(6), Err(Missing::Gone { oldest: 7 }));
    }
}
