//! What `umpa` needs from the machine below it, and the only way it reaches it.
//!
//! Three traits: entries of page tables ([`TableMemory`]), the translation caches ([`Tlb`]) and the
//! hypervisor ([`FrameSource`]). `guest` implements them with stores, INVLPG or CR3 and a hypercall;
//! the tests with a simulated MMU. Two more are for some only: [`Contents`] for memory that must read
//! as zero, [`BlockDevice`] and [`Checksum`] for a page file.

use umpa_abi::addr::{Frame, Page};
use umpa_abi::exchange::{Extent, Policy, Shortfall};

/// Reads and writes entries of page tables.
///
/// Implementations access memory that the processor reads by itself: volatile, and in program order.
pub trait TableMemory {
    /// The entry with this index (`0..512`) of the table in frame `table`.
    fn read(&self, table: Frame, index: usize) -> u64;
    /// Replaces it. One aligned 8-byte store.
    fn write(&mut self, table: Frame, index: usize, entry: u64);

    /// The same, as the first of several stores to a table above the leaves. Where page tables are
    /// shadowed each of them is a trap, unless the hypervisor stops to track the table; an
    /// implementation may know a store that makes it do so.
    #[inline]
    fn write_first(&mut self, table: Frame, index: usize, entry: u64) {
        self.write(table, index, entry);
    }

    /// The same for an entry whose translation may be cached, so that nobody counts on the store before the
    /// next flush: an implementation may hold it back until then, if `read` knows it at once. Where page
    /// tables are shadowed, a store above the leaves is a trap of its own; made by what flushes, it isn't.
    #[inline]
    fn write_by_flush(&mut self, table: Frame, index: usize, entry: u64) {
        self.write(table, index, entry);
    }
}

/// Drops cached translations of the current address space.
pub trait Tlb {
    /// Translations of one page, whatever the size of the leaf that maps it.
    fn flush_page(&mut self, page: Page);
    /// All translations.
    fn flush_all(&mut self);

    /// Translations of `pages` pages from `first` on, the cheaper way: one by one, or all.
    fn flush_range(&mut self, first: Page, pages: u64) {
        if pages >= self.full_from_pages() {
            return self.flush_all();
        }
        (0..pages).for_each(|page| self.flush_page(first.offset(page)));
    }

    /// From how many pages on a flush of all translations is cheaper than one of each page. By default
    /// Linux's figure (`tlb_single_page_flush_ceiling` + 1).
    fn full_from_pages(&self) -> u64 {
        34
    }
}

/// What an exchange brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exchanged {
    /// Pages granted of 4 KiB, 2 MiB, 1 GiB.
    pub granted_pages: [u64; 3],
    /// Frames (4 KiB) taken back.
    pub taken_frames: u64,
    /// Why it fell short, if it did.
    pub shortfall: Shortfall,
    /// Index of the extent that was refused, with [`Shortfall::NotYours`].
    pub bad_extent: usize,
}

/// The hypervisor's side of the frame exchange (see [`umpa_abi::exchange`]).
pub trait FrameSource {
    /// Gives `give` back and asks for `want_pages` (4 KiB, 2 MiB, 1 GiB); calls `granted` with each
    /// extent that came. At most [`EXTENTS_MAX`](umpa_abi::exchange::EXTENTS_MAX) extents each way.
    fn exchange(
        &mut self,
        give: &[Extent],
        want_pages: [u64; 3],
        policy: Policy,
        granted: &mut dyn FnMut(Extent),
    ) -> Exchanged;
}

/// Writes what is in frames. `umpa` never looks at content: this is for memory that must read as zero,
/// and for content that must lie in other frames.
pub trait Contents {
    /// Zeroes `frames` frames from `first` on.
    fn zero(&mut self, first: Frame, frames: u64);
    /// Copies `frames` frames from `from` on to those from `to` on. They don't overlap.
    fn copy(&mut self, from: Frame, to: Frame, frames: u64);
}

/// Tells whether a frame holds what it held before: for content that comes back from a page file.
pub trait Checksum {
    /// A sum of 64 bits over the frame's content: another one (almost surely) when any word, or the
    /// order of the words, is another. The same for as long as the guest runs.
    fn checksum(&self, frame: Frame) -> u64;
}

/// What a [`BlockDevice`] is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockOp {
    /// Fill the frame from the slot.
    Read,
    /// Write the frame to the slot. Done means: a read of the slot gives it, not that it survives a crash.
    Write,
    /// Make all completed writes durable; slot and frame mean nothing.
    Flush,
}

/// A request for a [`BlockDevice`]: one page of the file, one frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockRequest {
    /// What to do.
    pub op: BlockOp,
    /// Page of the file, from 0.
    pub slot: u64,
    /// The device reads or writes it until the completion: nobody else may write it, and for a read
    /// nobody else may look at it.
    pub frame: Frame,
    /// Comes back with the completion.
    pub tag: u64,
}

/// Why a request failed. What the slot (write) or the frame (read) holds then is unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockError {
    /// The file couldn't be read or written.
    Io,
    /// No room on the file's disk, or its quota is used up.
    NoSpace,
    /// The request makes no sense: a slot beyond the end, a frame that isn't the guest's.
    Refused,
}

/// A request is done. They come in any order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a failed request must not be taken for a good one"]
pub struct BlockCompletion {
    /// The request's tag.
    pub tag: u64,
    /// What became of it.
    pub result: Result<(), BlockError>,
}

/// The queue has no room: poll for completions first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueFull;

/// A file of pages that is read and written while the program goes on: virtio-blk's semantics
/// (Virtual I/O Device 1.2, section 5.2). Requests in flight at the same time are done in any order.
pub trait BlockDevice {
    /// Pages of the file.
    fn slots(&self) -> u64;
    /// Queues a request. It may begin at once, or wait for [`kick`](Self::kick).
    ///
    /// # Errors
    /// [`QueueFull`]; nothing was queued.
    fn submit(&mut self, request: BlockRequest) -> Result<(), QueueFull>;
    /// Lets all queued requests begin.
    fn kick(&mut self);
    /// A completion, if there is one. Costs no exit.
    fn poll(&mut self) -> Option<BlockCompletion>;
    /// Waits for a completion; `None` when nothing is in flight. Kicks.
    fn wait(&mut self) -> Option<BlockCompletion>;
}

impl<T: BlockDevice> BlockDevice for &mut T {
    fn slots(&self) -> u64 {
        (**self).slots()
    }
    fn submit(&mut self, request: BlockRequest) -> Result<(), QueueFull> {
        (**self).submit(request)
    }
    fn kick(&mut self) {
        (**self).kick();
    }
    fn poll(&mut self) -> Option<BlockCompletion> {
        (**self).poll()
    }
    fn wait(&mut self) -> Option<BlockCompletion> {
        (**self).wait()
    }
}

impl<T: Contents> Contents for &mut T {
    fn zero(&mut self, first: Frame, frames: u64) {
        (**self).zero(first, frames);
    }
    fn copy(&mut self, from: Frame, to: Frame, frames: u64) {
        (**self).copy(from, to, frames);
    }
}

impl<T: Checksum> Checksum for &mut T {
    fn checksum(&self, frame: Frame) -> u64 {
        (**self).checksum(frame)
    }
}

impl<T: TableMemory> TableMemory for &mut T {
    #[inline]
    fn read(&self, table: Frame, index: usize) -> u64 {
        (**self).read(table, index)
    }
    #[inline]
    fn write(&mut self, table: Frame, index: usize, entry: u64) {
        (**self).write(table, index, entry);
    }
    #[inline]
    fn write_first(&mut self, table: Frame, index: usize, entry: u64) {
        (**self).write_first(table, index, entry);
    }
    #[inline]
    fn write_by_flush(&mut self, table: Frame, index: usize, entry: u64) {
        (**self).write_by_flush(table, index, entry);
    }
}

impl<T: Tlb> Tlb for &mut T {
    fn flush_page(&mut self, page: Page) {
        (**self).flush_page(page);
    }
    fn flush_all(&mut self) {
        (**self).flush_all();
    }
    fn flush_range(&mut self, first: Page, pages: u64) {
        (**self).flush_range(first, pages);
    }
    fn full_from_pages(&self) -> u64 {
        (**self).full_from_pages()
    }
}

impl<T: FrameSource> FrameSource for &mut T {
    fn exchange(
        &mut self,
        give: &[Extent],
        want_pages: [u64; 3],
        policy: Policy,
        granted: &mut dyn FnMut(Extent),
    ) -> Exchanged {
        (**self).exchange(give, want_pages, policy, granted)
    }
}
