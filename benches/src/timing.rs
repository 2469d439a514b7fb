//! Whether times mean anything here, and how fast the clock runs.

use std::time::{Duration, Instant};

/// Set to `1` by `vmm emulate` in the machines that it starts.
pub const EMULATED_ENV: &str = "VMM_EMULATED";

/// False under an emulator: it shows that things are right and counts what happens, but its times say
/// nothing about any processor and are never printed or recorded.
#[must_use]
pub fn timing_is_real() -> bool {
    !is_emulated(
        std::env::var_os(EMULATED_ENV).is_some_and(|value| value == "1"),
        hypervisor_signature().as_ref(),
    )
}

fn is_emulated(said_so: bool, signature: Option<&[u8; 12]>) -> bool {
    // QEMU's emulator names itself; Bochs doesn't by default, and is told by the environment.
    said_so || signature.is_some_and(|text| text == b"TCGTCGTCGTCG" || text.starts_with(b"Bochs"))
}

/// CPUID leaf 4000_0000h, when leaf 1 says that there is a hypervisor.
fn hypervisor_signature() -> Option<[u8; 12]> {
    use std::arch::x86_64::__cpuid;
    if __cpuid(1).ecx & 1 << 31 == 0 {
        return None;
    }
    let leaf = __cpuid(0x4000_0000);
    let mut text = [0; 12];
    for (bytes, register) in text.chunks_exact_mut(4).zip([leaf.ebx, leaf.ecx, leaf.edx]) {
        bytes.copy_from_slice(&register.to_le_bytes());
    }
    Some(text)
}

/// Counts the time stamp counter against the system's clock for 20 ms.
#[must_use]
pub fn measure_tsc_hz() -> u64 {
    let (start, start_cycles) = (Instant::now(), work::raw::tsc_cycles());
    while start.elapsed() < Duration::from_millis(20) {
        std::hint::spin_loop();
    }
    let cycles = u128::from(work::raw::tsc_cycles().wrapping_sub(start_cycles));
    u64::try_from(cycles * 1_000_000_000 / start.elapsed().as_nanos().max(1)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn emulators_are_known() {
        assert!(is_emulated(true, None));
        assert!(is_emulated(false, Some(b"TCGTCGTCGTCG")));
        assert!(!is_emulated(false, Some(b"KVMKVMKVM\0\0\0")));
        assert!(!is_emulated(false, None));
    }

    #[test]
    fn the_clock_has_a_frequency() {
        let tsc_hz = measure_tsc_hz();
        assert!((100_000_000..20_000_000_000).contains(&tsc_hz), "{tsc_hz}");
    }
}
