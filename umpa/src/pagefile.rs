//! A page file in user mode: a region whose pages may be more than its frames, the rest in a file.
//!
//! The region's addresses are reserved as a block; a page gets a frame when it is touched first, and
//! its content goes to a slot of a [`BlockDevice`] when the frame is wanted elsewhere. Whoever gets
//! the page faults calls [`Pager::fault`], and lets the access be tried again.
//!
//! ```text
//!               touch                 a batch of victims, one flush
//! Untouched ──────────► Resident ──────────────┬─────► Writing ───┐ done
//!     ▲                   ▲  ▲                 │ (written: D)     ▼
//!     │ frame wanted,     │  └── touch, no I/O ┴──────────────► Standby
//!     └ never written ────│────────────────────────────────────   │ ▲
//!                         │ (mapped from Standby)    frame wanted ▼ │ read, sum compared
//!                         └───────────────────────────────────── Out ──► Reading
//! ```
//!
//! Frames are won in batches, ahead of need: some victims that the [`Policy`] names are unmapped, one
//! flush covers them all, and those that were written to are written out while the program goes on.
//! Until its frame is given away a page can be taken back without I/O.
//!
//! # What it promises
//!
//! - No page is lost: a frame is given away only when its page is zero, or was written completely and
//!   the device said so. A write that fails keeps the page in its frame, and is tried in another slot; the
//!   slot is set aside until there is no other.
//! - No wrong content: the sum of each slot's content is kept in memory and compared when a page comes
//!   back, so a torn, lost or misplaced write is an error that names address and slot.
//! - Room is promised at [`Pager::open`]: pages ≤ frames − 1 + slots ([`Promise::AtOpen`]), or found
//!   missing at a page's first touch ([`Promise::AtTouch`]). What is there stays usable either way.
//!   (One frame is for a page that comes in while another one has yet to go.)
//!
//! # Invariants ([`Pager::check`])
//!
//! - `pages = untouched + resident + writing + standby + reading + out`; each frame and each slot is
//!   of one page at most.
//! - `held = resident + writing + standby + reading ≤ frames_max`; they are blocks' frames to
//!   [`Umpa::check`].
//! - A resident page is mapped to its frame, all others aren't mapped, nor cached by the processor:
//!   nobody writes a frame that the device works on. After a failed write a page is resident without a
//!   mapping, and must be written again.
//! - `in flight = writing + reading`.
//! - A resident page's frame differs from its slot only if D is set or the record says so.
//!
//! # Cost
//!
//! A fault without I/O is constant: a record, a frame, a leaf. A page-in adds a request and the sum of
//! a frame. A batch is one flush and one kick for at most [`BATCH_MAX`] victims, besides a look at the A
//! bit of each page that the policy passes. Memory: 20 bytes a page for the pager, 12 for the policy,
//! 8 a slot.
//!
//! # Limits
//!
//! A region belongs to one vCPU: D is read before the entry is cleared, so another processor must not
//! use the region meanwhile. The program mustn't commit, release, resize or free the region as a block.
//!
//! Sources: SDM vol. 3A, 4.8 (A and D; an entry with D clear may be cached, so D is only ever cleared
//! by unmapping and a flush), 4.10.4.3; VMS's and Windows NT's modified and standby lists (Levy and
//! Lipman, *Virtual Memory Management in the VAX/VMS Operating System*, 1982).

mod check;
mod clock;
mod error;
mod evict;
mod fault;
mod list;
mod policy;
mod record;
mod s3fifo;
mod slots;
mod transfer;

pub use clock::Clock;
pub use error::{OpenError, PageFileError};
pub use evict::BATCH_MAX;
pub use list::Node;
pub use policy::Policy;
pub use record::{PageRecord, PageState};
pub use s3fifo::S3Fifo;

use crate::blocks::{BlockError as NoBlock, Machine, Umpa};
use crate::hardware::{BlockDevice, Checksum, Contents};
use evict::Fresh;
use list::List;
use slots::{SLOTS_MAX, Slots};
use umpa_abi::addr::{Gva, PAGE_BYTES, Page};

/// The machine below a pager.
pub trait PagedMachine: Machine + Contents + Checksum {}
impl<T: Machine + Contents + Checksum> PagedMachine for T {}

/// Fewest frames of a region: what one instruction may need at once (code, stack, two operands, each
/// across a page's end), and as many on their way out.
pub const FRAMES_MIN: u64 = 16;

/// When a region that could become larger than frames and slots is refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Promise {
    /// By [`Pager::open`]: later no touch fails for want of room, as long as the file works and the
    /// store has `frames_max` frames for the region.
    #[default]
    AtOpen,
    /// By the first touch of a page that has no room.
    AtTouch,
}

/// What can be chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Frames that the region holds at most.
    pub frames_max: u64,
    /// Victims that share a flush: `1..=BATCH_MAX`, and a quarter of the frames at most.
    pub batch_pages: u64,
    /// Pages read ahead when they are touched one after another; 0: none.
    pub readahead_pages: u32,
    /// When too large a region is refused.
    pub promise: Promise,
}

impl Config {
    /// The usual choice for so many frames.
    #[must_use]
    pub const fn new(frames_max: u64) -> Self {
        Self { frames_max, batch_pages: BATCH_MAX as u64 / 2, readahead_pages: 8, promise: Promise::AtOpen }
    }
}

/// Bookkeeping memory of a pager, all of it zeroed ([`Default`]).
#[derive(Debug)]
pub struct Memory<'a> {
    /// One for each page.
    pub records: &'a mut [PageRecord],
    /// One for each page.
    pub nodes: &'a mut [Node],
    /// One for each slot; fewer than the device has make the file smaller.
    pub slots: &'a mut [u64],
}

/// What is tried at a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// A load, or the load of a load and store.
    Read,
    /// A store.
    Write,
}

/// What a fault took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing: the page is mapped.
    Present,
    /// A zeroed frame: the page's first touch.
    Zeroed,
    /// The page's own frame, which hadn't been given away yet. No I/O.
    TakenBack,
    /// A read of the file.
    PagedIn,
}

/// What a pager did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Faults, those included that found the page mapped.
    pub faults: u64,
    /// First touches.
    pub zeroed: u64,
    /// Pages read because they were touched.
    pub page_ins: u64,
    /// Pages read ahead.
    pub read_ahead: u64,
    /// Pages taken back before their frame was given away, those read ahead included.
    pub taken_back: u64,
    /// Pages written.
    pub page_outs: u64,
    /// Victims that needed no write.
    pub clean: u64,
    /// Batches of victims: as many flushes.
    pub batches: u64,
    /// Looks at A bits.
    pub looks: u64,
    /// Writes that failed.
    pub failed_writes: u64,
    /// Reads that failed, or brought something else than was written.
    pub failed_reads: u64,
    /// Completions that belong to no request.
    pub strange: u64,
}

/// How many pages are where.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Mapped, or to be mapped at the next access.
    pub resident: u64,
    /// Being written.
    pub writing: u64,
    /// In a frame that can be given away.
    pub standby: u64,
    /// Being read.
    pub reading: u64,
    /// In the file only.
    pub out: u64,
}

impl Counts {
    /// Frames held.
    #[must_use]
    pub const fn held(&self) -> u64 {
        self.resident + self.writing + self.standby + self.reading
    }

    /// Pages that have content.
    #[must_use]
    pub const fn touched(&self) -> u64 {
        self.held() + self.out
    }

    fn of(&mut self, state: PageState) -> Option<&mut u64> {
        match state {
            PageState::Untouched => None,
            PageState::Resident(_) => Some(&mut self.resident),
            PageState::Writing(_) => Some(&mut self.writing),
            PageState::Standby(_) => Some(&mut self.standby),
            PageState::Out => Some(&mut self.out),
            PageState::Reading(_) => Some(&mut self.reading),
        }
    }
}

/// See the [module](self).
#[derive(Debug)]
pub struct Pager<'a, D, P> {
    first: Page,
    pages: u32,
    records: &'a mut [PageRecord],
    nodes: &'a mut [Node],
    standby: List,
    slots: Slots<'a>,
    policy: P,
    device: D,
    config: Config,
    counts: Counts,
    stats: Stats,
    fresh: Fresh,
    /// Where the search for a resident page with a slot goes on.
    slot_hand: u32,
    trouble: transfer::Trouble,
    ahead: fault::Ahead,
}

impl<'a, D: BlockDevice, P: Policy> Pager<'a, D, P> {
    /// A region of `bytes`, rounded up to pages, that read as zero.
    ///
    /// # Errors
    /// [`OpenError`]; nothing is reserved.
    pub fn open<M: Machine>(
        umpa: &mut Umpa<'_, M>,
        memory: Memory<'a>,
        device: D,
        policy: P,
        config: Config,
        bytes: u64,
    ) -> Result<Self, OpenError> {
        let pages = bytes.div_ceil(PAGE_BYTES);
        let room_pages = memory.records.len().min(memory.nodes.len()).min(u32::MAX as usize - 1) as u64;
        if pages > room_pages {
            return Err(OpenError::TooLittleMemory { pages, room_pages });
        }
        let frames = config.frames_max;
        if frames < FRAMES_MIN {
            return Err(OpenError::TooFewFrames { frames });
        }
        let slots = device.slots().min(memory.slots.len() as u64).min(SLOTS_MAX);
        let room_pages = frames - 1 + slots;
        if config.promise == Promise::AtOpen && pages > room_pages {
            return Err(OpenError::Full { pages, room_pages });
        }
        let gva = umpa.userpage_reserve(bytes).map_err(OpenError::Space)?;
        let batch_pages = config.batch_pages.clamp(1, (frames / 4).min(BATCH_MAX as u64));
        Ok(Self {
            first: gva.containing(),
            pages: pages as u32,
            records: &mut memory.records[..pages as usize],
            nodes: &mut memory.nodes[..pages as usize],
            standby: List::default(),
            slots: Slots::new(&mut memory.slots[..slots as usize]),
            policy,
            device,
            config: Config { batch_pages, ..config },
            counts: Counts::default(),
            stats: Stats::default(),
            fresh: Fresh::default(),
            slot_hand: 0,
            trouble: transfer::Trouble::default(),
            ahead: fault::Ahead::default(),
        })
    }

    /// The region's first address.
    #[must_use]
    pub const fn start(&self) -> Gva {
        self.first.start()
    }

    /// The region's length.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.pages as u64 * PAGE_BYTES
    }

    /// True for an address of the region.
    #[must_use]
    pub fn contains(&self, gva: Gva) -> bool {
        self.index(gva).is_some()
    }

    /// What it did so far.
    #[must_use]
    pub const fn stats(&self) -> Stats {
        self.stats
    }

    /// How many pages are where.
    #[must_use]
    pub const fn counts(&self) -> Counts {
        self.counts
    }

    /// Pages that can have content at once: frames − 1 + slots that aren't retired.
    #[must_use]
    pub fn room_pages(&self) -> u64 {
        self.config.frames_max - 1 + self.slots.len() - self.slots.retired()
    }

    /// Slots that were set aside since writes to them failed.
    #[must_use]
    pub fn retired_slots(&self) -> u64 {
        self.slots.retired()
    }

    /// Gives slots that were set aside another chance, after the reason is gone. Returns how many.
    pub fn readmit(&mut self) -> u64 {
        self.trouble.forget();
        self.slots.readmit()
    }

    /// Where the page of `gva` is, and its slot.
    #[must_use]
    pub fn state(&self, gva: Gva) -> Option<(PageState, Option<u64>)> {
        let record = self.records[self.index(gva)? as usize];
        Some((record.state(), record.slot()))
    }

    /// The device.
    pub fn device_mut(&mut self) -> &mut D {
        &mut self.device
    }

    /// The policy.
    #[must_use]
    pub const fn policy(&self) -> &P {
        &self.policy
    }

    /// Ends the region: content, frames and addresses are given up. Afterwards it has no page.
    ///
    /// # Errors
    /// [`PageFileError::Lost`]: frames are still the device's. What isn't, was given up.
    pub fn close<M: PagedMachine>(&mut self, umpa: &mut Umpa<'_, M>) -> Result<(), PageFileError> {
        self.discard(umpa, self.start(), self.bytes())?;
        let freed = umpa.userpage_free(self.start());
        debug_assert!(freed.is_ok() || matches!(freed, Err(NoBlock::NotABlock { .. })), "{freed:?}");
        self.pages = 0;
        Ok(())
    }

    fn index(&self, gva: Gva) -> Option<u32> {
        let page = gva.containing().get().checked_sub(self.first.get())?;
        (page < u64::from(self.pages)).then_some(page as u32)
    }

    fn page(&self, index: u32) -> Page {
        self.first.offset(index.into())
    }

    fn record(&self, index: u32) -> PageRecord {
        self.records[index as usize]
    }

    /// Changes a page's state, and the counts and the standby list with it.
    fn set_state(&mut self, index: u32, state: PageState) {
        let old = self.record(index).state();
        if let Some(count) = self.counts.of(old) {
            *count -= 1;
        }
        if let Some(count) = self.counts.of(state) {
            *count += 1;
        }
        match (matches!(old, PageState::Standby(_)), matches!(state, PageState::Standby(_))) {
            (true, false) => self.standby.remove(self.nodes, index),
            (false, true) => self.standby.push(self.nodes, index),
            _ => {}
        }
        self.records[index as usize] = self.record(index).with_state(state);
    }

    fn set_slot(&mut self, index: u32, slot: Option<u64>) {
        self.records[index as usize] = self.record(index).with_slot(slot);
    }

    fn set_must_write(&mut self, index: u32, must: bool) {
        self.records[index as usize] = self.record(index).with_must_write(must);
    }
}
