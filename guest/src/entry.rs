//! The image header, the first instruction, and the way from there to a workload and to the end.

#![allow(unsafe_code)] // reason: the first code of an image gets bare addresses from the VMM

use umpa_abi::addr::Gva;
use umpa_abi::boot::BootInfo;
use umpa_abi::call::ExitCode;
use umpa_abi::{DecodeError, Wire};

use crate::attacks;
use crate::call::{self, CallArea};
use crate::machine::Machine;
use crate::trap;
use crate::upcall;
use crate::workloads::{self, Context};

#[cfg(feature = "image")]
core::arch::global_asm!(
    "    .section .image.header, \"a\", @progbits",
    "    .globl image_header",
    "image_header:",
    "    .quad {magic}",
    "    .long {version}",
    "    .long 0",
    "    .quad _start",
    "    .quad image_text_end",
    "    .quad image_rodata_end",
    "    .quad image_data_end",
    "    .quad image_trap_text_end",
    "    .quad image_end",
    "    .quad trap_stubs",
    "    .quad image_trap_tables",
    "    .quad image_trap_stack_top",
    "    .quad {syscall}",
    "    .section .text._start, \"ax\", @progbits",
    "    .globl _start",
    "_start:",
    "    xor ebp, ebp",
    "    test rsi, rsi",
    "    jnz 2f",
    "    call {enter}",
    "    ud2",
    "2:",
    "    call {processor}",
    "    ud2",
    magic = const umpa_abi::image::IMAGE_MAGIC,
    version = const umpa_abi::ABI_VERSION,
    syscall = sym crate::syscall::stub,
    enter = sym enter,
    processor = sym crate::processors::enter,
);

/// Reads the boot info, runs the workload that it names, and ends.
///
/// A boot info of another version is answered with `Hello` of this one's, which the VMM refuses by
/// name: the image header should have stopped it earlier.
pub extern "C" fn enter(boot: Gva) -> ! {
    // SAFETY: the VMM put a boot info page there, mapped read-only and never written again (contract
    // of umpa_abi::image, field `entry`).
    let bytes = unsafe { core::slice::from_raw_parts(boot.get() as *const u8, BootInfo::SIZE_BYTES) };
    match BootInfo::decode(bytes) {
        Ok(boot) => run(&boot),
        Err(error) => refuse(error),
    }
}

/// Without boot info there is no call area, so no console: the report of `ud2` can't be printed, and
/// the trap code ends in a triple fault, with the error in rax and rdx for whoever looks.
fn refuse(error: DecodeError) -> ! {
    let (kind, found) = match error {
        DecodeError::Short { have_bytes, .. } => (1, have_bytes as u64),
        DecodeError::Value { found, .. } => (2, found),
        DecodeError::Version { found } => (3, found.into()),
    };
    trap::stop(kind, found)
}

fn run(boot: &BootInfo) -> ! {
    trap::set_call_area(boot.call_area());
    // SAFETY: the boot info was decoded, so the VMM has mapped call areas there for this guest
    // alone; this is the only place that installs them, and it runs once.
    unsafe { CallArea::install(boot) };
    // SAFETY: the same goes for the request page, which the VMM maps for this guest to read.
    unsafe { upcall::install(boot.requests()) };
    if attacks::greets(boot)
        && let Err(status) = call::hello()
    {
        panic!("the VMM doesn't want ABI version {}: {status:?}", umpa_abi::ABI_VERSION);
    }
    // SAFETY: the first processor alone gets here, once; its tables are as the boot info says.
    let machine = unsafe { Machine::new(boot) };
    match workloads::run(&mut Context::new(boot, machine)) {
        Ok(()) => call::exit(ExitCode::Passed),
        Err(failure) => {
            println!("FAILED: {failure}");
            call::exit(ExitCode::Failed)
        }
    }
}
