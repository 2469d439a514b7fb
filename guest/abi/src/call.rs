//! Hypercalls: one request at a time through the call area.
//!
//! A processor writes a [`CallHeader`] and its payload into its call area and executes
//! `out CALL_PORT, eax` (allowed at CPL 3 by the TSS's I/O permission bitmap, SDM vol. 1, 19.5.2; IOPL 3
//! alone isn't enough: kvm-pvm runs CPL 3 with IOPL 0). The VMM copies header and payload in, checks
//! them, acts, and copies header and reply out before the instruction is completed. What the guest
//! changes meanwhile (another processor) has no effect: the VMM never reads twice.
//!
//! Each processor has a call area of its own, one behind the other. The VMM serves one call after the other.
//! While one processor waits in [`Op::Pause`] none runs; [`Op::Exit`] is the end of all.
//!
//! | op | payload in | reply |
//! | --- | --- | --- |
//! | [`Op::Hello`] | - (`args[0]` = version) | - |
//! | [`Op::Console`] | bytes of text | - |
//! | [`Op::Exchange`] | [`ExchangeRequest`](crate::exchange::ExchangeRequest), extents given back | [`ExchangeReply`](crate::exchange::ExchangeReply), extents granted |
//! | [`Op::Report`] | [`Record`](crate::record::Record)s | - |
//! | [`Op::Pause`] | - (`args[0]` = tag) | `args[0]` = the driver's answer |
//! | [`Op::Answer`] | [`Answer`](crate::upcall::Answer) | `args[0]` = frames that came back |
//! | [`Op::Exit`] | - (`args[0]` = [`ExitCode`]) | doesn't return |

use crate::DecodeError;
use crate::layout::CALL_AREA_BYTES;
use crate::wire::wire_struct;

/// The I/O port of hypercalls.
pub const CALL_PORT: u16 = 0x0600;

/// Payload bytes that fit behind the header.
pub const PAYLOAD_MAX_BYTES: usize = CALL_AREA_BYTES as usize - 64;

wire_struct! {
    /// First bytes of the call area; the payload follows.
    pub struct CallHeader [64] {
        /// [`Op`] by number.
        pub op: u32,
        /// Set by the VMM: [`Status`] by number.
        pub status: u32,
        /// Payload bytes that the guest wrote.
        pub in_bytes: u32,
        /// Set by the VMM: payload bytes of the reply.
        pub out_bytes: u32,
        /// Arguments, and results.
        pub args: [u64; 6],
    }
}

impl CallHeader {
    fn check(&self) -> Result<(), DecodeError> {
        if self.in_bytes as usize > PAYLOAD_MAX_BYTES {
            return Err(DecodeError::Value { field: "in_bytes", found: self.in_bytes.into() });
        }
        Ok(())
    }
}

macro_rules! wire_enum {
    ($(#[$meta:meta])* pub enum $name:ident ($field:literal) { $($(#[$vmeta:meta])* $variant:ident = $number:literal,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u32)]
        pub enum $name { $($(#[$vmeta])* $variant = $number,)* }

        impl TryFrom<u32> for $name {
            type Error = DecodeError;
            fn try_from(number: u32) -> Result<Self, DecodeError> {
                match number {
                    $($number => Ok(Self::$variant),)*
                    _ => Err(DecodeError::Value { field: $field, found: number.into() }),
                }
            }
        }
    };
}

pub(crate) use wire_enum;

wire_enum! {
    /// What a guest asks for.
    pub enum Op ("op") {
        /// Version handshake; the first call of every guest.
        Hello = 1,
        /// Text for the console.
        Console = 2,
        /// The frame exchange.
        Exchange = 3,
        /// Results.
        Report = 4,
        /// Hands control to the driver of this guest until it resumes it (benchmarks interleave so).
        Pause = 5,
        /// The end.
        Exit = 6,
        /// All that comes of a request for frames has come (see [`upcall`](crate::upcall)).
        Answer = 7,
    }
}

/// Answers to [`Op::Pause`] of a guest that works in rounds: it pauses before each round, with the round's
/// number from 0, and after the last one.
pub mod round {
    /// There is no more round. What [`Op::Pause`](super::Op::Pause) answers where nobody drives the guest.
    pub const IS_OVER: u64 = 0;
    /// The next round's times don't count.
    pub const WARMS_UP: u64 = 1;
    /// The next round's times are wanted.
    pub const COUNTS: u64 = 2;
}

wire_enum! {
    /// What became of a call.
    pub enum Status ("status") {
        /// Done.
        Ok = 0,
        /// No such op.
        UnknownOp = 1,
        /// The payload isn't what the op has.
        BadPayload = 2,
        /// The guest was built for another version.
        BadVersion = 3,
        /// Before [`Op::Hello`] nothing else is answered.
        NoHello = 4,
        /// The exchange didn't happen, or not wholly; its reply says why.
        ExchangeFailed = 5,
        /// An answer to a request that isn't there, or is answered already.
        NoSuchRequest = 6,
    }
}

wire_enum! {
    /// How a guest ended.
    pub enum ExitCode ("exit code") {
        /// It did what it should.
        Passed = 0,
        /// It found something wrong and has said so.
        Failed = 1,
        /// It panicked; file and line are on the console.
        Panicked = 2,
        /// An exception that nobody handles; the report is on the console.
        Exception = 3,
    }
}
