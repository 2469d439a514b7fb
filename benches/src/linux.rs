//! Linux's page allocator as programs use it: `mmap` and `munmap` of anonymous memory.
//!
//! | series | allocation | what it shows |
//! | --- | --- | --- |
//! | `linux-mmap` | `mmap` | 4 KiB pages that come by page faults: the paper's kernel allocator |
//! | `linux-populate` | `mmap(MAP_POPULATE)` | the same without faults |
//! | `linux-thp` | `mmap`, `madvise(MADV_HUGEPAGE)` | transparent huge pages where the kernel places them |
//!
//! The first two must not get huge pages whatever the host's setting. Where the setting is `madvise`
//! or `never` they don't, and no call is made; only where it is `always` they pay for one
//! `madvise(MADV_NOHUGEPAGE)` per block. Freeing is one `munmap` in all three.
//!
//! The process also has the guests' virtual machines, and KVM listens to every `munmap` of it: that
//! costs these series 350 to 400 cycles per block (measured: the median `munmap` of a touched page takes
//! 2,726 cycles without a VM, 3,128 with two). It is 2 % of the smallest bin and nothing from 64 KiB up.
#![allow(unsafe_code, reason = "maps and unmaps memory: the allocators under test")]

use std::fs;
use std::path::Path;
use std::ptr::{self, NonNull};

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};
use work::Blocks;

/// One of the native baselines.
#[derive(Clone, Copy, Debug)]
pub struct Linux {
    name: &'static str,
    flags: MapFlags,
    advice: Option<Advice>,
}

impl Linux {
    /// Names of all native series.
    pub const NAMES: [&str; 3] = ["linux-mmap", "linux-populate", "linux-thp"];

    /// The series with this name.
    #[must_use]
    pub fn by_name(name: &str) -> Option<Self> {
        let name = Self::NAMES.into_iter().find(|known| *known == name)?;
        let mut flags = MapFlags::PRIVATE;
        let mut advice = huge_pages_come().then_some(Advice::LinuxNoHugepage);
        match name {
            "linux-populate" => flags |= MapFlags::POPULATE,
            "linux-thp" => advice = Some(Advice::LinuxHugepage),
            _ => {}
        }
        Some(Self { name, flags, advice })
    }
}

/// True if memory that nobody gave advice about may get huge pages on this host.
pub(crate) fn huge_pages_come() -> bool {
    huge_pages_come_unasked(Path::new(THP))
}

const THP: &str = "/sys/kernel/mm/transparent_hugepage";

/// True if memory that nobody gave advice about may get huge pages of any size. A setting that can't
/// be read counts as none: a kernel without the file has no huge pages.
fn huge_pages_come_unasked(thp: &Path) -> bool {
    let selected = |path: &Path| {
        let text = fs::read_to_string(path).unwrap_or_default();
        text.split(['[', ']']).nth(1).unwrap_or("never").to_owned()
    };
    let top = selected(&thp.join("enabled"));
    let sizes = fs::read_dir(thp).into_iter().flatten().flatten();
    let mut by_size = sizes
        .map(|entry| entry.path().join("enabled"))
        .filter(|path| path.exists())
        .map(|path| selected(&path))
        .peekable();
    match by_size.peek() {
        None => top == "always",
        Some(_) => by_size.any(|size| size == "always" || (size == "inherit" && top == "always")),
    }
}

// SAFETY: every block is a mapping of its own, readable and writable, until it is unmapped.
unsafe impl Blocks for Linux {
    fn name(&self) -> &'static str {
        self.name
    }

    #[inline]
    fn alloc(&mut self, bytes: u64) -> Option<NonNull<u8>> {
        let bytes = usize::try_from(bytes).ok()?;
        // SAFETY: a new mapping where the kernel likes.
        let block =
            unsafe { mmap_anonymous(ptr::null_mut(), bytes, ProtFlags::READ | ProtFlags::WRITE, self.flags) }
                .ok()?;
        if let Some(advice) = self.advice {
            // The kernel may have no huge pages at all; the block is as good without.
            // SAFETY: the mapping that was just made; this advice changes no byte.
            let _ = unsafe { madvise(block, bytes, advice) };
        }
        NonNull::new(block.cast())
    }

    #[inline]
    unsafe fn free(&mut self, block: NonNull<u8>, bytes: u64) {
        // It can't fail for a mapping of ours, but for the limit of mappings, which a whole one doesn't reach.
        // SAFETY: the whole of a mapping that `alloc` made; the caller has no use for it any more.
        let _ = unsafe { munmap(block.as_ptr().cast(), bytes as usize) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use work::{Fig7, Params, Phase, Slot};

    #[test]
    fn every_baseline_does_the_work_without_a_wrong_byte() {
        let params = Params { ops: 40, warmup_ops: 10, ring_blocks: 8, slice_ops: 20, ..Params::PAPER };
        for name in Linux::NAMES {
            let mut slots = [Slot::EMPTY; 8];
            let mut work = Fig7::new(&params, Linux::by_name(name).unwrap(), &mut slots).unwrap();
            while work.run_slice().unwrap().phase != Phase::Done {}
            assert_eq!(work.wrong_bytes(), 0, "{name}");
            assert_eq!(work.points().map(|point| point.ops).sum::<u64>(), 40, "{name}");
        }
    }

    #[test]
    fn names_are_found_and_others_not() {
        assert!(
            Linux::NAMES
                .into_iter()
                .all(|name| Linux::by_name(name).is_some_and(|linux| linux.name() == name))
        );
        assert!(Linux::by_name("linux").is_none());
    }

    #[test]
    fn the_hosts_setting_is_understood() {
        let dir = std::env::temp_dir().join(format!("thp-{}", std::process::id()));
        let size = dir.join("hugepages-2048kB");
        let set = |top: &str, two_mib: Option<&str>| {
            fs::create_dir_all(&size).unwrap();
            fs::write(dir.join("enabled"), top).unwrap();
            if let Some(two_mib) = two_mib {
                fs::write(size.join("enabled"), two_mib).unwrap();
            }
            let unasked = huge_pages_come_unasked(&dir);
            fs::remove_dir_all(&dir).unwrap();
            unasked
        };
        assert!(set("[always] madvise never\n", None));
        assert!(!set("always [madvise] never\n", None));
        assert!(set("[always] madvise never\n", Some("always [inherit] madvise never\n")));
        assert!(!set("[always] madvise never\n", Some("always inherit madvise [never]\n")));
        assert!(set("always madvise [never]\n", Some("[always] inherit madvise never\n")));
        assert!(!huge_pages_come_unasked(&dir));
    }
}
