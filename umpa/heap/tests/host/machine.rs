// A machine with real memory: see mod.rs.

#[path = "../../../tests/simulated/ledger.rs"]
mod ledger;

use std::ffi::{c_int, c_void};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering::SeqCst};
use std::sync::{Mutex, MutexGuard, Once};

use ledger::Ledger;
use umpa::blocks::{Config, Umpa};
use umpa::frames::FrameStore;
use umpa::hardware::{Contents, Exchanged, FrameSource, TableMemory, Tlb};
use umpa::tables::{PageTables, TableArena};
use umpa_abi::addr::{Frame, Gva, PAGE_BYTES, Page, PageSize};
use umpa_abi::exchange::{Extent, Policy};
use umpa_abi::layout::{BLOCKS_BYTES, BLOCKS_GVA, FRAMES_GPA, direct};
use umpa_abi::paging::{self, ENTRIES};

/// First frame that can be granted; the ledger wants to know.
pub(crate) const FRAMES: Frame = FRAMES_GPA.containing();
const TABLES: Frame = Frame::new(0x400);
/// Each byte of a frame that is granted, unless told otherwise.
pub(crate) const GARBAGE: u8 = 0xa5;

/// What the handler of faults needs.
struct Space {
    words: Vec<u64>,
    file: c_int,
    walks: AtomicU64,
}

static SPACE: AtomicPtr<Space> = AtomicPtr::new(null_mut());
/// The handler of page faults: a pointer to a reference that [`with_handler`] keeps.
static FAULTS: AtomicPtr<&dyn Fn(Gva) -> bool> = AtomicPtr::new(null_mut());
static ONE: Mutex<()> = Mutex::new(());
static HANDLER: Once = Once::new();

/// See the [module](self).
pub(crate) struct Machine {
    space: Box<Space>,
    ledger: Ledger,
    frames: u64,
    /// Flushes of everything, and of pages.
    pub(crate) flushes: [u64; 2],
    /// Each byte of a frame that is granted.
    pub(crate) grants: u8,
    /// No flush has an effect: a test must notice.
    pub(crate) ignore_flushes: bool,
    _one: MutexGuard<'static, ()>,
}

// SAFETY: the mutex guard makes it not `Send` by itself; tests use it on the thread that made it.
unsafe impl Send for Machine {}

/// Translations that the current machine has looked up.
pub(crate) fn walks() -> u64 {
    // SAFETY: a machine that is current lives.
    unsafe { SPACE.load(SeqCst).as_ref() }.map_or(0, |space| space.walks.load(SeqCst))
}

/// Runs `program`, whose writes to pages without the right to are `handler`'s: it answers whether to try
/// again.
pub(crate) fn with_handler<T>(handler: &dyn Fn(Gva) -> bool, program: impl FnOnce() -> T) -> T {
    struct Registered;
    impl Drop for Registered {
        fn drop(&mut self) {
            FAULTS.store(null_mut(), SeqCst);
        }
    }
    // Nobody uses it after this function: `Registered` takes it away.
    FAULTS.store((&raw const handler).cast_mut().cast(), SeqCst);
    let _registered = Registered;
    program()
}

/// Runs `test` with an allocator on a machine with so many frames, of which those exist that `exists`
/// says.
pub(crate) fn with_umpa<T>(
    frames: u64,
    config: Config,
    exists: impl Fn(u64) -> bool,
    test: impl FnOnce(&mut Umpa<'_, Machine>) -> T,
) -> T {
    let table_frames = umpa_abi::layout::table_frames(frames);
    let (mut tags, mut links) = (vec![0; frames as usize], vec![0; table_frames as usize]);
    let machine = Machine::new(frames, table_frames, exists);
    let arena = TableArena::new(TABLES, 2, &mut links);
    let tables = PageTables::new(TABLES, arena, PageSize::Size1G);
    test(&mut Umpa::new(machine, FrameStore::new(FRAMES, &mut tags), tables, config))
}

impl Machine {
    fn new(frames: u64, table_frames: u64, exists: impl Fn(u64) -> bool) -> Self {
        let one = ONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        HANDLER.call_once(install_handler);
        // SAFETY: makes a file and maps it where nothing is (MAP_FIXED_NOREPLACE).
        let file = unsafe {
            let file = libc::memfd_create(c"frames".as_ptr(), libc::MFD_CLOEXEC);
            assert!(file >= 0, "memfd_create");
            assert_eq!(libc::ftruncate(file, (frames * PAGE_BYTES) as i64), 0, "ftruncate");
            file
        };
        map(direct(FRAMES_GPA).get(), frames * PAGE_BYTES, true, file, 0, libc::MAP_FIXED_NOREPLACE);
        let space = Space { words: vec![0; table_frames as usize * ENTRIES], file, walks: AtomicU64::new(0) };
        let mut space = Box::new(space);
        SPACE.store(&raw mut *space, SeqCst);
        let mut machine = Self {
            space,
            ledger: Ledger::new(frames, exists),
            frames,
            flushes: [0; 2],
            grants: GARBAGE,
            ignore_flushes: false,
            _one: one,
        };
        let flags = paging::PRESENT | paging::WRITABLE | paging::USER | paging::ACCESSED;
        let below = TABLES.offset(1);
        let at = direct(FRAMES_GPA);
        machine.write(TABLES, paging::index(at, 4), below.start().get() | flags);
        let leaf = FRAMES.start().get() | flags | paging::LARGE | paging::DIRTY | paging::NO_EXECUTE;
        machine.write(below, paging::index(at, 3), leaf);
        machine
    }

    /// Frames that the guest has.
    pub(crate) fn granted(&self) -> u64 {
        self.ledger.granted()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.ignore_flushes = false;
        self.flush_all();
        SPACE.store(null_mut(), SeqCst);
        unmap(direct(FRAMES_GPA).get(), self.frames * PAGE_BYTES);
        // SAFETY: the file is this machine's.
        unsafe { libc::close(self.space.file) };
    }
}

fn word(table: Frame, index: usize) -> usize {
    (table.get() - TABLES.get()) as usize * ENTRIES + index
}

impl TableMemory for Machine {
    fn read(&self, table: Frame, index: usize) -> u64 {
        self.space.words[word(table, index)]
    }

    fn write(&mut self, table: Frame, index: usize, entry: u64) {
        self.space.words[word(table, index)] = entry;
    }
}

impl Tlb for Machine {
    fn flush_page(&mut self, page: Page) {
        self.flushes[1] += 1;
        if !self.ignore_flushes {
            unmap(page.start().get(), PAGE_BYTES);
        }
    }

    fn flush_all(&mut self) {
        self.flushes[0] += 1;
        if !self.ignore_flushes {
            unmap(BLOCKS_GVA.get(), BLOCKS_BYTES);
        }
    }
}

impl Contents for Machine {
    fn zero(&mut self, first: Frame, frames: u64) {
        fill(first, frames, 0);
    }

    fn copy(&mut self, from: Frame, to: Frame, frames: u64) {
        let [from, to] = [from, to].map(|frame| direct(frame.start()).get() as *mut u8);
        // SAFETY: the direct map shows both, and they don't overlap.
        unsafe { to.copy_from_nonoverlapping(from, (frames * PAGE_BYTES) as usize) };
    }
}

impl FrameSource for Machine {
    fn exchange(
        &mut self,
        give: &[Extent],
        want_pages: [u64; 3],
        policy: Policy,
        granted: &mut dyn FnMut(Extent),
    ) -> Exchanged {
        let byte = self.grants;
        self.ledger.exchange(give, want_pages, policy, &mut |extent| {
            fill(extent.first(), extent.frames(), byte);
            granted(extent);
        })
    }
}

fn fill(first: Frame, frames: u64, byte: u8) {
    let start = direct(first.start()).get() as *mut u8;
    // SAFETY: the direct map shows the frames.
    unsafe { start.write_bytes(byte, (frames * PAGE_BYTES) as usize) };
}

fn map(address: u64, bytes: u64, writable: bool, file: c_int, offset: u64, how: c_int) {
    let rights = libc::PROT_READ | if writable { libc::PROT_WRITE } else { 0 };
    let flags = libc::MAP_SHARED | how;
    // SAFETY: the addresses are this machine's: nobody else maps something there.
    let mapped =
        unsafe { libc::mmap(address as *mut c_void, bytes as usize, rights, flags, file, offset as i64) };
    assert_eq!(mapped as u64, address, "mmap: {}", std::io::Error::last_os_error());
}

fn unmap(address: u64, bytes: u64) {
    // SAFETY: as in `map`.
    let done = unsafe { libc::munmap(address as *mut c_void, bytes as usize) };
    assert_eq!(done, 0, "munmap: {}", std::io::Error::last_os_error());
}

fn install_handler() {
    // SAFETY: the handler does nothing but what may be done in one: it reads tables, maps a page, and
    // calls who was registered for it, on the stack of the code that faulted.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        let handler: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) = on_fault;
        action.sa_sigaction = handler as usize;
        // The handler may touch memory that isn't in the "TLB" itself.
        action.sa_flags = libc::SA_SIGINFO | libc::SA_NODEFER;
        assert_eq!(libc::sigaction(libc::SIGSEGV, &raw const action, null_mut()), 0, "sigaction");
    }
}

/// A page fault: the processor's walk, and the handler where that doesn't allow the access.
extern "C" fn on_fault(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel gives valid records; bit 1 of the error code is set by writes.
    let (address, is_write) = unsafe {
        let registers = &(*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs;
        ((*info).si_addr() as u64, registers[libc::REG_ERR as usize] & 2 != 0)
    };
    for _ in 0..2 {
        // SAFETY: the machine outlives all accesses to its blocks, and its thread, which is this one, isn't
        // in the middle of a store to its tables.
        let space = unsafe { SPACE.load(SeqCst).as_ref() };
        if let Some(space) = space
            && let Some((frame, writable)) = walk(space, address)
            && (writable || !is_write)
        {
            space.walks.fetch_add(1, SeqCst);
            let offset = (frame.get() - FRAMES.get()) * PAGE_BYTES;
            let page = address & !(PAGE_BYTES - 1);
            return map(page, PAGE_BYTES, writable, space.file, offset, libc::MAP_FIXED);
        }
        // SAFETY: `with_handler` keeps what it points to for as long as it is registered.
        let handler = unsafe { FAULTS.load(SeqCst).as_ref() };
        if !is_write || !handler.is_some_and(|handler| handler(Gva::new(address))) {
            break;
        }
    }
    let text = b"a test touched memory that isn't mapped, or wrote what it may not\n";
    // SAFETY: writes a constant; then the access is made again, and ends the process.
    unsafe {
        libc::write(2, text.as_ptr().cast(), text.len());
        libc::signal(signal, libc::SIG_DFL);
    }
}

/// The frame, and whether it can be written.
fn walk(space: &Space, address: u64) -> Option<(Frame, bool)> {
    if address.wrapping_sub(BLOCKS_GVA.get()) >= BLOCKS_BYTES {
        return None;
    }
    let (gva, mut table, mut writable) = (Gva::new(address), TABLES, true);
    for level in (1..=paging::LEVELS).rev() {
        let entry = space.words[word(table, paging::index(gva, level))];
        if entry & paging::PRESENT == 0 {
            return None;
        }
        writable &= entry & paging::WRITABLE != 0;
        table = paging::address(entry).containing();
        if level == 1 || (level < 4 && entry & paging::LARGE != 0) {
            return Some((table.offset(gva.containing().get() % (1 << (9 * (level - 1)))), writable));
        }
    }
    None
}
