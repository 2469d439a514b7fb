//! The time stamp counter.

#![allow(unsafe_code)] // reason: RDTSC is an intrinsic of the platform

/// Cycles since some start, at [`tsc_hz`](umpa_abi::boot::BootInfo::tsc_hz). Not serializing: what is
/// timed should be long against 30 cycles.
#[must_use]
pub fn cycles() -> u64 {
    // SAFETY: every x86-64 processor has it; CR4.TSD is clear.
    unsafe { core::arch::x86_64::_rdtsc() }
}
