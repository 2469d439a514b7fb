//! `print!` and `println!`: text for the VMM's console.
//!
//! Text is formatted straight into the call area, so that a `println!` is one hypercall however many
//! pieces it has, and nothing is kept between calls. Longer text goes out in pieces.

use core::fmt::{self, Write};

use umpa_abi::call::Op;

use crate::call::CallArea;

/// Formats text and sends it to the console.
#[macro_export]
macro_rules! print {
    ($($arg:tt)*) => { $crate::console::print(format_args!($($arg)*)) };
}

/// The same with a line feed at the end.
#[macro_export]
macro_rules! println {
    () => { $crate::print!("\n") };
    ($($arg:tt)*) => { $crate::console::print(format_args!("{}\n", format_args!($($arg)*))) };
}

/// What the macros expand to. Text past the VMM's limit is lost: the VMM says so itself.
pub fn print(text: fmt::Arguments<'_>) {
    let mut line = Line { area: CallArea::take(), used_bytes: 0 };
    // `write_str` below never fails; an error of a value's own `Display` cuts the text.
    let _ = line.write_fmt(text);
    line.send();
}

/// Sends text as it is; the VMM minds bytes that aren't UTF-8.
pub fn write(text: &[u8]) {
    let mut line = Line { area: CallArea::take(), used_bytes: 0 };
    line.put(text);
    line.send();
}

struct Line {
    area: CallArea,
    used_bytes: usize,
}

impl Line {
    fn send(&mut self) {
        if self.used_bytes > 0 {
            self.area.call(Op::Console, self.used_bytes, 0);
            self.used_bytes = 0;
        }
    }

    fn put(&mut self, text: &[u8]) {
        let mut rest = text;
        while !rest.is_empty() {
            let free = &mut self.area.payload()[self.used_bytes..];
            let (now, later) = rest.split_at(rest.len().min(free.len()));
            free[..now.len()].copy_from_slice(now);
            self.used_bytes += now.len();
            if !later.is_empty() {
                self.send();
            }
            rest = later;
        }
    }
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.put(text.as_bytes());
        Ok(())
    }
}
