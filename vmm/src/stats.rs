//! What is counted: exits and hypercalls by us, the rest by KVM (`KVM_GET_STATS_FD`).
//!
//! KVM's statistics are the honest way to say "no exit": `exits`, `pf_taken`, `pf_fixed`,
//! `tlb_flush`, `invlpg`, `pages_*` … Source: Linux `Documentation/virt/kvm/api.rst`, 4.134.
#![allow(unsafe_code)] // an ioctl that kvm-ioctls doesn't have

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::FileExt;

use umpa_abi::addr::PAGE_BYTES;
use umpa_abi::call::Op;
use vmm_sys_util::ioctl::ioctl;

use crate::block::queue::{Status, Work};
use crate::exits::Exit;

#[allow(unreachable_pub)] // the macro's function is pub
mod number {
    vmm_sys_util::ioctl_io_nr!(KVM_GET_STATS_FD, kvm_bindings::KVMIO, 0xce);
}

const HEADER_BYTES: usize = 24;
const DESCRIPTOR_BYTES: usize = 16;
/// KVM has about 100; more than this is nonsense.
const STATS_MAX: usize = 4096;
const NAME_MAX_BYTES: usize = 256;

/// Hypercalls by op.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Calls {
    counts: [u64; 8],
}

impl Calls {
    pub(crate) fn count(&mut self, op: Op) {
        if let Some(count) = self.counts.get_mut(op as usize) {
            *count = count.saturating_add(1);
        }
    }

    /// How often `op` was called.
    #[must_use]
    pub fn of(&self, op: Op) -> u64 {
        self.counts.get(op as usize).copied().unwrap_or(0)
    }

    /// Names and counts, of the ops that were called.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        [
            ("hello", Op::Hello),
            ("console", Op::Console),
            ("exchange", Op::Exchange),
            ("report", Op::Report),
            ("pause", Op::Pause),
            ("answer", Op::Answer),
            ("exit", Op::Exit),
        ]
        .map(|(name, op)| (name, self.of(op)))
        .into_iter()
        .filter(|(_, count)| *count > 0)
    }
}

/// Exits by kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exits {
    counts: BTreeMap<&'static str, u64>,
}

impl Exits {
    pub(crate) fn count(&mut self, exit: &Exit) {
        let count = self.counts.entry(exit.name()).or_default();
        *count = count.saturating_add(1);
    }

    /// Adds another vCPU's.
    pub(crate) fn add(&mut self, other: &Self) {
        for (name, count) in other.iter() {
            let sum = self.counts.entry(name).or_default();
            *sum = sum.saturating_add(count);
        }
    }

    /// Names and counts.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        self.counts.iter().map(|(name, count)| (*name, *count))
    }

    /// All of them.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.counts.values().sum()
    }
}

/// What the block device did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlockCounts {
    /// Times that the guest told of requests.
    pub kicks: u64,
    /// Times that it waited as well.
    pub waits: u64,
    /// Pages read, or tried to.
    pub reads: u64,
    /// Pages written, or tried to.
    pub writes: u64,
    /// Flushes.
    pub flushes: u64,
    /// Bytes that were read.
    pub read_bytes: u64,
    /// Bytes that were written.
    pub written_bytes: u64,
    /// Requests that the storage failed.
    pub errors: u64,
    /// Requests that made no sense.
    pub refused: u64,
}

impl BlockCounts {
    pub(crate) fn count(&mut self, work: Work, status: Status) {
        let is_ok = status == Status::Ok;
        let bytes = if is_ok { PAGE_BYTES } else { 0 };
        let add = |count: &mut u64, more: u64| *count = count.saturating_add(more);
        add(&mut self.errors, u64::from(!is_ok));
        match work {
            Work::Read { .. } => {
                add(&mut self.reads, 1);
                add(&mut self.read_bytes, bytes);
            }
            Work::Write { .. } => {
                add(&mut self.writes, 1);
                add(&mut self.written_bytes, bytes);
            }
            Work::Flush => add(&mut self.flushes, 1),
        }
    }

    /// Requests of all kinds.
    #[must_use]
    pub const fn requests(&self) -> u64 {
        let transfers = self.reads.saturating_add(self.writes);
        transfers.saturating_add(self.flushes).saturating_add(self.refused)
    }

    /// Names and values.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        [
            ("requests", self.requests()),
            ("kicks", self.kicks),
            ("waits", self.waits),
            ("reads", self.reads),
            ("writes", self.writes),
            ("flushes", self.flushes),
            ("read_bytes", self.read_bytes),
            ("written_bytes", self.written_bytes),
            ("errors", self.errors),
            ("refused", self.refused),
        ]
        .into_iter()
    }
}

/// All counters of a guest at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Returns from KVM_RUN, by kind.
    pub exits: Exits,
    /// Violations that became page faults of the guest.
    pub injected_violations: u64,
    /// Hypercalls, by op.
    pub calls: Calls,
    /// Of the block device; `None` without one.
    pub block: Option<BlockCounts>,
    /// KVM's, of the vCPUs; empty if KVM has none.
    pub kvm_vcpu: BTreeMap<String, u64>,
    /// KVM's, of the whole machine.
    pub kvm_vm: BTreeMap<String, u64>,
}

/// KVM's statistics of one machine or vCPU.
#[derive(Debug)]
pub struct KvmStats {
    file: File,
    /// Name, and offset of the value, of each that is a single number.
    values: Vec<(String, u64)>,
}

impl KvmStats {
    /// Opens the statistics of a VM or vCPU.
    ///
    /// # Errors
    /// The ioctl's (an old kernel), or `InvalidData`.
    pub fn open(of: &impl AsRawFd) -> io::Result<Self> {
        // SAFETY: KVM_GET_STATS_FD takes no argument and touches no memory of ours.
        let fd = unsafe { ioctl(of, number::KVM_GET_STATS_FD()) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: KVM has just made this descriptor for us; nobody else has it.
        let file = unsafe { File::from_raw_fd(fd) };
        let mut header = [0; HEADER_BYTES];
        file.read_exact_at(&mut header, 0)?;
        let word = |at: usize| number(&header, at, 4) as usize;
        let (name_bytes, count, at, data) = (word(4), word(8), word(16), word(20));
        if name_bytes > NAME_MAX_BYTES || count > STATS_MAX {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut descriptors = vec![0; count.saturating_mul(DESCRIPTOR_BYTES.saturating_add(name_bytes))];
        file.read_exact_at(&mut descriptors, at as u64)?;
        let values = parse(&descriptors, name_bytes, data as u64);
        Ok(Self { file, values })
    }

    /// The values now. A value that can't be read is left out.
    #[must_use]
    pub fn read(&self) -> BTreeMap<String, u64> {
        let value = |offset| {
            let mut bytes = [0; 8];
            // Seeking does nothing in this file: it must be pread.
            self.file.read_exact_at(&mut bytes, offset).ok().map(|()| u64::from_le_bytes(bytes))
        };
        self.values.iter().filter_map(|(name, offset)| Some((name.clone(), value(*offset)?))).collect()
    }
}

/// Names and offsets of the statistics that are one number, not a histogram.
fn parse(descriptors: &[u8], name_bytes: usize, data: u64) -> Vec<(String, u64)> {
    descriptors
        .chunks_exact(DESCRIPTOR_BYTES.saturating_add(name_bytes))
        .filter_map(|descriptor| {
            let (fixed, name) = descriptor.split_at_checked(DESCRIPTOR_BYTES)?;
            let (size, offset) = (number(fixed, 6, 2), number(fixed, 8, 4));
            let name = name.split(|&byte| byte == 0).next()?;
            (size == 1).then(|| (String::from_utf8_lossy(name).into_owned(), data.saturating_add(offset)))
        })
        .collect()
}

/// The little-endian number of `count` bytes at `at`, 0 outside.
fn number(bytes: &[u8], at: usize, count: usize) -> u64 {
    let bytes = bytes.get(at..).and_then(|bytes| bytes.get(..count)).unwrap_or(&[]);
    bytes.iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn single_numbers_are_kept_and_histograms_left_out() {
        let mut bytes = Vec::new();
        for (size, offset, name) in
            [(1u16, 8u32, *b"exits\0\0\0"), (64, 16, *b"histo\0\0\0"), (1, 600, *b"tlbflush")]
        {
            bytes.extend([0; 6]);
            bytes.extend(size.to_le_bytes());
            bytes.extend(offset.to_le_bytes());
            bytes.extend([0; 4]);
            bytes.extend(name);
        }
        let values = parse(&bytes, 8, 1000);
        assert_eq!(values, [("exits".to_owned(), 1008), ("tlbflush".to_owned(), 1600)]);
    }

    #[test]
    fn calls_are_counted_by_op() {
        let mut calls = Calls::default();
        calls.count(Op::Exchange);
        calls.count(Op::Exchange);
        calls.count(Op::Exit);
        assert_eq!(calls.iter().collect::<Vec<_>>(), [("exchange", 2), ("exit", 1)]);
    }
}
