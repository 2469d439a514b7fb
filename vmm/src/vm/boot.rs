//! What a guest is told at its start.

use umpa_abi::ABI_VERSION;
use umpa_abi::addr::PAGE_BYTES;
use umpa_abi::boot::{ARGS_BYTES, BOOT_MAGIC, BootInfo, MmuMode, feature};
use umpa_abi::layout::{CALL_AREA_BYTES, FRAMES_GPA, direct};

use super::{VmConfig, VmError};
use crate::host::Host;
use crate::system::{BLOCK_QUEUE_GVA, CALL_AREA_GVA, REQUESTS_GVA, SystemLayout};
use crate::tables::Tables;

pub(super) fn boot_info(
    host: &Host,
    system: &SystemLayout,
    tables: Tables,
    config: &VmConfig,
    (args, args_bytes): ([u8; ARGS_BYTES], u32),
    tsc_hz: u64,
) -> BootInfo {
    let pages_1g = if host.pages_1g() { feature::PAGES_1G } else { 0 };
    let emulated = if config.is_emulated { feature::EMULATED } else { 0 };
    let to_ring_0 = if host.mode() == MmuMode::Shadow { 0 } else { feature::SYSCALL_TO_RING0 };
    let block = if config.page_file.is_some() { feature::BLOCK } else { 0 };
    BootInfo {
        magic: BOOT_MAGIC,
        version: ABI_VERSION,
        mmu_mode: host.mode() as u32,
        ring: config.ring.number().into(),
        features: pages_1g | to_ring_0 | emulated | block,
        root: tables.root.get(),
        tables_first: system.tables.gpa.containing().get(),
        tables_frames: system.tables.bytes / PAGE_BYTES,
        tables_used: tables.used,
        bookkeeping: direct(system.bookkeeping.gpa).get(),
        bookkeeping_bytes: system.bookkeeping.bytes,
        frames_first: FRAMES_GPA.containing().get(),
        frames_max: config.memory_bytes / PAGE_BYTES,
        requests: REQUESTS_GVA.get(),
        call_area: CALL_AREA_GVA.get(),
        call_area_bytes: CALL_AREA_BYTES,
        tsc_hz,
        block_queue: BLOCK_QUEUE_GVA.get(),
        block_queue_gpa: system.block_queue.gpa.get(),
        block_slots: config.page_file.as_ref().map_or(0, |file| file.slots),
        args_bytes,
        processors: system.processors as u32,
        args,
    }
}

pub(super) fn pack_args(args: &[String]) -> Result<([u8; ARGS_BYTES], u32), VmError> {
    let text: Vec<u8> = args.iter().flat_map(|arg| arg.bytes().chain([0])).collect();
    let zeros = text.iter().filter(|&&byte| byte == 0).count();
    let mut packed = [0; ARGS_BYTES];
    match packed.get_mut(..text.len()) {
        Some(room) if zeros == args.len() => room.copy_from_slice(&text),
        _ => return Err(VmError::Args { bytes: text.len() }),
    }
    Ok((packed, text.len() as u32))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_packed_and_bounded() {
        let pack = |args: &[&str]| pack_args(&args.iter().map(|&arg| arg.to_owned()).collect::<Vec<_>>());
        let (bytes, used) = pack(&["pass", "x"]).unwrap();
        assert_eq!(&bytes[..used as usize], b"pass\0x\0");
        assert!(matches!(pack(&["a\0b"]), Err(VmError::Args { bytes: 4 })));
        assert!(matches!(pack(&[&"x".repeat(ARGS_BYTES)]), Err(VmError::Args { .. })));
    }
}
