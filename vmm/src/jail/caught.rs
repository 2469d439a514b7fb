//! What happens when a thread makes a system call that its rules don't have: the process ends, and says
//! which one it was.
//!
//! The kernel doesn't execute the call; it raises SIGSYS on the thread instead, whose handler does what
//! handlers may: it writes one line to standard error and ends the process with exit code 2.

use std::io;
use std::sync::OnceLock;

use syscalls::Sysno;
use vmm_sys_util::signal::register_signal_handler;

/// As of an error of the VMM or the host.
const EXIT_CODE: i32 = 2;
/// The signal comes from a filter (`SYS_SECCOMP` in `asm-generic/siginfo.h`).
const SYS_SECCOMP: i32 = 1;
/// Where `siginfo_t` has the call's number: behind three ints, padding, and the address of the call.
const NUMBER_INDEX: usize = 6;

/// From now on forbidden calls are reported.
pub(super) fn report_violations() -> io::Result<()> {
    static DONE: OnceLock<bool> = OnceLock::new();
    let is_done = *DONE.get_or_init(|| register_signal_handler(libc::SIGSYS, on_sigsys).is_ok());
    if is_done { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::EINVAL)) }
}

extern "C" fn on_sigsys(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel hands a handler with SA_SIGINFO a siginfo_t of 128 bytes; with SIGSYS from a
    // filter its seventh int is the number of the call.
    let (code, number) = unsafe { ((*info).si_code, info.cast::<i32>().add(NUMBER_INDEX).read()) };
    let mut line = Line::default();
    if code == SYS_SECCOMP {
        line.push("vmm: the jail stopped system call ");
        line.push_number(number.unsigned_abs());
        if let Some(call) = usize::try_from(number).ok().and_then(Sysno::new) {
            line.push(" (");
            line.push(call.name());
            line.push(")");
        }
        line.push(" on the ");
        line.push(super::ROLE.get());
        line.push(
            " thread: a bug of the VMM, or of its rules (vmm/src/jail/rules.rs); --no-jail runs without, for \
             debugging\n",
        );
    } else {
        line.push("vmm: SIGSYS, and not from the jail\n");
    }
    // SAFETY: the bytes are in the array; write and _exit may be called in a handler.
    unsafe {
        libc::write(libc::STDERR_FILENO, line.bytes.as_ptr().cast(), line.len);
        libc::_exit(EXIT_CODE);
    }
}

/// Text without an allocator.
struct Line {
    bytes: [u8; 256],
    len: usize,
}

impl Default for Line {
    fn default() -> Self {
        Self { bytes: [0; 256], len: 0 }
    }
}

impl Line {
    fn push(&mut self, text: &str) {
        for byte in text.bytes() {
            if let Some(free) = self.bytes.get_mut(self.len) {
                *free = byte;
                self.len = self.len.saturating_add(1);
            }
        }
    }

    fn push_number(&mut self, number: u32) {
        if number >= 10 {
            self.push_number(number / 10);
        }
        if let Some(free) = self.bytes.get_mut(self.len) {
            *free = b'0' | (number % 10) as u8;
            self.len = self.len.saturating_add(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_written_without_an_allocator_and_cut_where_it_is_full() {
        let mut line = Line::default();
        line.push("call ");
        line.push_number(257);
        line.push_number(0);
        assert_eq!(&line.bytes[..line.len], b"call 2570");
        line.push(&"x".repeat(1000));
        assert_eq!(line.len, 256);
    }
}
