//! C programs: their `main`, and text for the console.

#![allow(unsafe_code)] // reason: C symbols; reads C strings; calls C

use core::ffi::{CStr, c_char, c_int};

use umpa::mmap::Errno;
use umpa_abi::boot::BootInfo;

use super::Library;
use crate::console;
use crate::heap::current;

/// Prints text on the console. NULL is nothing.
///
/// # Safety
/// text is a string, or NULL.
#[cfg_attr(feature = "image", unsafe(no_mangle))]
pub unsafe extern "C" fn umpa_print(text: *const c_char) {
    if !text.is_null() {
        // SAFETY: the caller's precondition.
        console::write(unsafe { CStr::from_ptr(text) }.to_bytes());
    }
}

/// Prints a number in decimal digits on the console.
#[cfg_attr(feature = "image", unsafe(no_mangle))]
pub extern "C" fn umpa_print_number(number: u64) {
    print!("{number}");
}

/// The `main` that is linked into the image.
#[cfg(feature = "image")]
mod linked {
    use core::ffi::{c_char, c_int};

    unsafe extern "C" {
        pub(super) fn main(argc: c_int, argv: *mut *mut c_char) -> c_int;
    }
}

/// On a host there is none.
#[cfg(not(feature = "image"))]
mod linked {
    use core::ffi::{c_char, c_int};

    /// # Safety
    /// None is needed.
    pub(super) unsafe fn main(_argc: c_int, _argv: *mut *mut c_char) -> c_int {
        -1
    }
}

/// Runs the image's `main` with the arguments of the boot info, the first of which is the workload's name.
/// Returns what it returns.
///
/// # Errors
/// `ENOMEM`: no current heap, or no memory there for the arguments.
pub fn run(boot: &BootInfo) -> Result<c_int, Errno> {
    let count = boot.args().count();
    let library = Library(current().ok_or(Errno::ENOMEM)?);
    let table = library.calloc(count + 1, size_of::<*mut c_char>())?.cast::<*mut c_char>();
    let all = boot.args().map(|arg| arg.len() + 1).sum();
    let mut text = library.calloc(all, 1)?.cast::<u8>();
    let first = text;
    for (at, arg) in boot.args().enumerate() {
        // SAFETY: the table has a place for each argument and a null pointer; the text has room for each
        // with a zero byte, and is zero.
        unsafe {
            table.add(at).write(text.cast());
            text.copy_from_nonoverlapping(arg.as_ptr(), arg.len());
            text = text.add(arg.len() + 1);
        }
    }
    // SAFETY: it is the C program's `main`, which is called once, and gets what C promises it.
    let code = unsafe { linked::main(count as c_int, table) };
    // SAFETY: the program has ended.
    unsafe {
        library.free(first.cast())?;
        library.free(table.cast())?;
    }
    Ok(code)
}
