//! The guest's page tables: the first ones, which the VMM builds, and a walk through what the guest
//! has made of them.
//!
//! | pages | entry |
//! | --- | --- |
//! | code | P, A; U at CPL 3 |
//! | constants, boot info, request page | P, A, D, NX; U at CPL 3 |
//! | data, call areas, block queue, stacks, direct map | P, W, A, D, NX; U at CPL 3 |
//! | trap stubs | P, A |
//! | trap tables and stacks | P, W, A, D, NX |
//!
//! With the workload at CPL 0 nothing has U: code at CPL 0 may not run on a user page (SMEP, and
//! KVM's software MMU always). A and D are set from the start, so the processor never writes.

use umpa_abi::addr::{Frame, Gpa, Gva, PAGE_BYTES, PageSize};
use umpa_abi::image::ImageHeader;
use umpa_abi::layout::{self, FRAMES_GPA, IMAGE_GVA, STACK_BYTES, SYSTEM_GPA, TRAPS_BYTES, direct};
use umpa_abi::paging::{
    ACCESSED, DIRTY, ENTRIES, LARGE, LEVELS, NO_EXECUTE, PRESENT, USER, WRITABLE, address, entry_bytes, index,
};

use crate::memory::{GuestRam, MemoryError};
use crate::system::{Area, BLOCK_QUEUE_GVA, BOOT_GVA, CALL_AREA_GVA, REQUESTS_GVA, SystemLayout};
use crate::vcpu::Ring;

/// What a mapping allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// CPL 3 may use it, if the workload runs there.
    pub user: bool,
    /// Stores are allowed.
    pub write: bool,
    /// Instruction fetches are allowed.
    pub execute: bool,
}

const CODE: Access = Access { user: true, write: false, execute: true };
const CONSTANTS: Access = Access { user: true, write: false, execute: false };
const DATA: Access = Access { user: true, write: true, execute: false };
const TRAP_CODE: Access = Access { user: false, write: false, execute: true };
const TRAP_DATA: Access = Access { user: false, write: true, execute: false };

/// Why the first tables can't be built.
#[derive(Debug, thiserror::Error)]
pub enum TablesError {
    /// The arena has no frame left. The layout makes it large enough.
    #[error("the table arena of {tables} frames is too small")]
    ArenaFull {
        /// Its size.
        tables: u64,
    },
    /// Two parts at one address.
    #[error("{gva} is mapped already, by the entry {existing:#x}")]
    AlreadyMapped {
        /// Where.
        gva: Gva,
        /// The entry that is there.
        existing: u64,
    },
    /// A table isn't in memory.
    #[error("can't write a page table")]
    Memory(#[from] MemoryError),
}

/// The tables that a guest starts with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tables {
    /// The value of CR3.
    pub root: Gpa,
    /// Frames of the arena that hold tables.
    pub used: u64,
}

/// Builds them.
///
/// # Errors
/// [`TablesError`]; none happens with a checked header and a layout made for it.
pub fn build(
    ram: &GuestRam,
    system: &SystemLayout,
    header: &ImageHeader,
    ring: Ring,
    pages_1g: bool,
) -> Result<Tables, TablesError> {
    let mut builder = Builder::new(ram, system.tables, ring);
    let mut start = IMAGE_GVA.get();
    for (end, access) in [
        (header.text_end, CODE),
        (header.rodata_end, CONSTANTS),
        (header.data_end, DATA),
        (header.trap_text_end, TRAP_CODE),
        (header.end, TRAP_DATA),
    ] {
        // The header's bounds are in order, and in the image area (`ImageHeader::decode`).
        let (offset, bytes) = (start.saturating_sub(IMAGE_GVA.get()), end.saturating_sub(start));
        let gpa = Gpa::new(SYSTEM_GPA.get().saturating_add(offset));
        builder.map_area(Gva::new(start), Area { gpa, bytes }, access, PageSize::Size4K)?;
        start = end;
    }
    builder.map_area(BOOT_GVA, system.boot, CONSTANTS, PageSize::Size4K)?;
    builder.map_area(REQUESTS_GVA, system.requests, CONSTANTS, PageSize::Size4K)?;
    builder.map_area(CALL_AREA_GVA, system.call_areas, DATA, PageSize::Size4K)?;
    builder.map_area(BLOCK_QUEUE_GVA, system.block_queue, DATA, PageSize::Size4K)?;
    for processor in 0..system.processors {
        let stack = system.stacks.part(processor, STACK_BYTES);
        builder.map_area(layout::stack(processor), stack, DATA, PageSize::Size4K)?;
    }
    for processor in 1..system.processors {
        let traps = system.traps.part(processor.saturating_sub(1), TRAPS_BYTES);
        builder.map_area(layout::traps(processor), traps, TRAP_DATA, PageSize::Size4K)?;
    }
    // From the bookkeeping to the end of the slot in one go: with 2 MiB leaves throughout.
    let own_bytes = system.tables.end().saturating_sub(system.bookkeeping.gpa.get());
    let own = Area { gpa: system.bookkeeping.gpa, bytes: own_bytes };
    builder.map_area(direct(own.gpa), own, DATA, PageSize::Size2M)?;
    let frames = ram.frames_range();
    let frames = Area { gpa: FRAMES_GPA, bytes: frames.end.saturating_sub(frames.start) };
    let largest = if pages_1g { PageSize::Size1G } else { PageSize::Size2M };
    builder.map_area(direct(frames.gpa), frames, DATA, largest)?;
    Ok(Tables { root: builder.root, used: builder.used })
}

struct Builder<'a> {
    ram: &'a GuestRam,
    arena: Area,
    ring: Ring,
    root: Gpa,
    used: u64,
    /// The last table that got a leaf: its level, the first address that it covers, where it is.
    last: Option<(u32, u64, Gpa)>,
}

impl<'a> Builder<'a> {
    fn new(ram: &'a GuestRam, arena: Area, ring: Ring) -> Self {
        Self { ram, arena, ring, root: arena.gpa, used: 1, last: None }
    }

    /// Maps an area by the largest leaves that fit, up to `largest`.
    fn map_area(
        &mut self,
        gva: Gva,
        area: Area,
        access: Access,
        largest: PageSize,
    ) -> Result<(), TablesError> {
        let mut offset = 0u64;
        while offset < area.bytes {
            let at = Gva::new(gva.get().saturating_add(offset));
            let gpa = Gpa::new(area.gpa.get().saturating_add(offset));
            let fits = |size: &PageSize| {
                *size <= largest
                    && at.is_aligned(*size)
                    && gpa.is_aligned(*size)
                    && area.bytes.saturating_sub(offset) >= size.bytes()
            };
            let size = PageSize::ALL.into_iter().rev().find(fits).unwrap_or(PageSize::Size4K);
            self.map(at, gpa, access, size)?;
            offset = offset.saturating_add(size.bytes());
        }
        Ok(())
    }

    fn map(&mut self, gva: Gva, gpa: Gpa, access: Access, size: PageSize) -> Result<(), TablesError> {
        let level = size.level();
        let covered = gva.get() & !entry_bytes(level.saturating_add(1)).wrapping_sub(1);
        let table = match self.last {
            Some((last_level, last_covered, table)) if (last_level, last_covered) == (level, covered) => {
                table
            }
            _ => self.table(gva, level)?,
        };
        self.last = Some((level, covered, table));
        let at = entry_gpa(table, index(gva, level));
        let existing = self.load(at)?;
        if existing & PRESENT != 0 {
            return Err(TablesError::AlreadyMapped { gva, existing });
        }
        let mut entry = gpa.get() | PRESENT | ACCESSED;
        entry |= if access.write { WRITABLE } else { 0 };
        entry |= if access.execute { 0 } else { NO_EXECUTE | DIRTY };
        entry |= if access.user && self.ring == Ring::Three { USER } else { 0 };
        entry |= if level > 1 { LARGE } else { 0 };
        Ok(self.ram.store(at, entry)?)
    }

    /// The table at `level` that covers `gva`; missing ones are made.
    fn table(&mut self, gva: Gva, level: u32) -> Result<Gpa, TablesError> {
        let mut table = self.root;
        for above in (level.saturating_add(1)..=LEVELS).rev() {
            let at = entry_gpa(table, index(gva, above));
            let entry = self.load(at)?;
            if entry & LARGE != 0 {
                return Err(TablesError::AlreadyMapped { gva, existing: entry });
            }
            table = if entry & PRESENT != 0 { address(entry) } else { self.add_table(at)? };
        }
        Ok(table)
    }

    fn add_table(&mut self, at: Gpa) -> Result<Gpa, TablesError> {
        let tables = self.arena.bytes / PAGE_BYTES;
        if self.used == tables {
            return Err(TablesError::ArenaFull { tables });
        }
        let table = self.arena.gpa.containing().offset(self.used).start();
        self.used = self.used.saturating_add(1);
        let user = if self.ring == Ring::Three { USER } else { 0 };
        self.ram.store(at, table.get() | PRESENT | WRITABLE | ACCESSED | user)?;
        Ok(table)
    }

    fn load(&self, at: Gpa) -> Result<u64, TablesError> {
        let mut bytes = [0; 8];
        self.ram.read(at, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }
}

const fn entry_gpa(table: Gpa, index: usize) -> Gpa {
    // A table's address has 52 bits (`address`), its entries' offsets have 12.
    Gpa::new(table.get() | ((index % ENTRIES) as u64) << 3)
}

/// What a walk for one address finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Walk {
    /// A leaf.
    Mapped {
        /// Where the address leads.
        gpa: Gpa,
        /// The leaf.
        leaf: u64,
        /// Size of the page.
        size: PageSize,
    },
    /// An entry isn't present.
    NotPresent {
        /// Its level, 4..=1.
        level: u32,
    },
    /// A table lies where the guest has no memory.
    TableOutside {
        /// Level of the table.
        level: u32,
        /// Where the guest's entry says it is.
        table: Gpa,
    },
    /// The address isn't canonical.
    NotCanonical,
}

/// Walks the tables from `root` as the processor does: at most four reads, each checked.
pub fn walk(mut read_entry: impl FnMut(Gpa) -> Option<u64>, root: Gpa, gva: Gva) -> Walk {
    if !gva.is_canonical() {
        return Walk::NotCanonical;
    }
    let mut table = address(root.get());
    for (level, size) in [(4, None), (3, Some(PageSize::Size1G)), (2, Some(PageSize::Size2M)), (1, None)] {
        let Some(entry) = read_entry(entry_gpa(table, index(gva, level))) else {
            return Walk::TableOutside { level, table };
        };
        if entry & PRESENT == 0 {
            return Walk::NotPresent { level };
        }
        let leaf_size = match size {
            Some(size) if entry & LARGE != 0 => size,
            _ if level == 1 => PageSize::Size4K,
            _ => {
                table = address(entry);
                continue;
            }
        };
        let low = leaf_size.bytes().wrapping_sub(1);
        let gpa = Gpa::new(address(entry).get() & !low | gva.get() & low);
        return Walk::Mapped { gpa, leaf: entry, size: leaf_size };
    }
    Walk::NotPresent { level: 1 }
}

/// The frame a walk ends at, if it ends at one.
impl Walk {
    /// The frame that the address leads to.
    #[must_use]
    pub const fn frame(self) -> Option<Frame> {
        match self {
            Self::Mapped { gpa, .. } => Some(gpa.containing()),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use umpa_abi::ABI_VERSION;
    use umpa_abi::image::IMAGE_MAGIC;
    use umpa_abi::layout::{BLOCKS_GVA, PROCESSORS_MAX, STACKS_GVA, TRAPS_GVA};

    use super::*;

    fn header() -> ImageHeader {
        let at = |page: u64| IMAGE_GVA.get() + page * PAGE_BYTES;
        ImageHeader {
            magic: IMAGE_MAGIC,
            version: ABI_VERSION,
            reserved: 0,
            entry: at(0),
            text_end: at(3),
            rodata_end: at(4),
            data_end: at(6),
            trap_text_end: at(7),
            end: at(10),
            trap_stubs: at(6),
            trap_tables: at(7),
            trap_stack_top: at(10),
            syscall: at(0),
        }
    }

    fn built(ring: Ring, frames_bytes: u64, pages_1g: bool) -> (GuestRam, SystemLayout, Tables) {
        let system = SystemLayout::new(header().size_bytes(), frames_bytes, PROCESSORS_MAX).unwrap();
        let ram = GuestRam::new(system.bytes(), frames_bytes).unwrap();
        let tables = build(&ram, &system, &header(), ring, pages_1g).unwrap();
        (ram, system, tables)
    }

    fn look(ram: &GuestRam, tables: Tables, gva: Gva) -> Walk {
        let read = |gpa| {
            let mut bytes = [0; 8];
            ram.read(gpa, &mut bytes).ok().map(|()| u64::from_le_bytes(bytes))
        };
        walk(read, tables.root, gva)
    }

    fn bits(walk: Walk) -> u64 {
        match walk {
            Walk::Mapped { leaf, .. } => leaf & (WRITABLE | USER | NO_EXECUTE),
            _ => panic!("{walk:?}"),
        }
    }

    #[test]
    fn every_part_has_its_permissions() {
        let (ram, _, tables) = built(Ring::Three, 64 << 20, false);
        let image = |page: u64| Gva::new(IMAGE_GVA.get() + page * PAGE_BYTES);
        for (gva, want) in [
            (image(0), USER),
            (image(3), USER | NO_EXECUTE),
            (image(5), USER | WRITABLE | NO_EXECUTE),
            (image(6), 0),
            (image(9), WRITABLE | NO_EXECUTE),
            (BOOT_GVA, USER | NO_EXECUTE),
            (REQUESTS_GVA, USER | NO_EXECUTE),
            (CALL_AREA_GVA, USER | WRITABLE | NO_EXECUTE),
            (BLOCK_QUEUE_GVA, USER | WRITABLE | NO_EXECUTE),
            (STACKS_GVA, USER | WRITABLE | NO_EXECUTE),
            (layout::stack(3), USER | WRITABLE | NO_EXECUTE),
            (TRAPS_GVA, WRITABLE | NO_EXECUTE),
            (Gva::new(layout::traps(3).get() + TRAPS_BYTES - 1), WRITABLE | NO_EXECUTE),
            (direct(FRAMES_GPA), USER | WRITABLE | NO_EXECUTE),
        ] {
            assert_eq!(bits(look(&ram, tables, gva)), want, "{gva}");
        }
        for gva in [
            image(10),
            Gva::new(STACKS_GVA.get() - 1),
            Gva::new(STACKS_GVA.get() + STACK_BYTES),
            Gva::new(layout::stack(1).get() - 1),
            layout::stack(4),
            Gva::new(TRAPS_GVA.get() + TRAPS_BYTES),
            layout::traps(4),
            Gva::new(0),
            BLOCKS_GVA,
            direct(Gpa::new(FRAMES_GPA.get() + (64 << 20))),
            direct(SYSTEM_GPA),
        ] {
            assert!(matches!(look(&ram, tables, gva), Walk::NotPresent { .. }), "{gva}");
        }
        assert_eq!(look(&ram, tables, Gva::new(1 << 47)), Walk::NotCanonical);
    }

    #[test]
    fn nothing_is_for_users_at_ring_0() {
        let (ram, _, tables) = built(Ring::Zero, 2 << 20, false);
        for gva in [IMAGE_GVA, BOOT_GVA, STACKS_GVA, direct(FRAMES_GPA)] {
            assert_eq!(bits(look(&ram, tables, gva)) & USER, 0);
        }
    }

    #[test]
    fn the_direct_map_has_the_largest_leaves_and_reaches_the_last_byte() {
        for (pages_1g, first_size) in [(true, PageSize::Size1G), (false, PageSize::Size2M)] {
            let (ram, system, tables) = built(Ring::Three, (1 << 30) + (2 << 20) + 4096, pages_1g);
            let size_at = |offset: u64| {
                let gpa = Gpa::new(FRAMES_GPA.get() + offset);
                match look(&ram, tables, direct(gpa)) {
                    Walk::Mapped { gpa: found, size, .. } if found == gpa => size,
                    walk => panic!("{walk:?}"),
                }
            };
            assert_eq!(size_at(12345), first_size);
            assert_eq!(size_at((1 << 30) + 1), PageSize::Size2M);
            assert_eq!(size_at((1 << 30) + (2 << 20) + 4095), PageSize::Size4K);
            let last_table = Gpa::new(system.tables.end() - 1);
            assert_eq!(look(&ram, tables, direct(last_table)).frame(), Some(last_table.containing()));
            assert!(tables.used < 20, "{}", tables.used);
        }
    }

    proptest! {
        /// Whatever is in memory, a walk ends after at most four reads.
        #[test]
        fn a_walk_ends(entries in prop::collection::vec(any::<Option<u64>>(), 4), gva: u64) {
            let mut reads = entries.into_iter();
            let _ = walk(|_| reads.next().expect("a fifth read"), Gpa::new(0), Gva::new(gva));
        }
    }
}
