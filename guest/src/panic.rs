//! Where panics end: message, file and line on the console, exit code `Panicked`.

use core::panic::PanicInfo;
use core::sync::atomic::{AtomicBool, Ordering::Relaxed};

use umpa_abi::call::ExitCode;

use crate::call;

static PANICKED: AtomicBool = AtomicBool::new(false);

/// Prints `info` and ends the guest. A panic while printing ends it without more words.
#[cfg_attr(feature = "image", panic_handler)]
pub fn last_words(info: &PanicInfo<'_>) -> ! {
    if !PANICKED.swap(true, Relaxed) {
        call::break_in();
        println!("PANIC: {info}");
    }
    call::exit(ExitCode::Panicked)
}
