//! The block device of a guest's page file: virtio-blk requests in a virtio split queue (Virtual I/O
//! Device 1.2, sections 2.7 and 5.2), without a transport.
//!
//! Where the queue lies and how large it is are fixed, so there is nothing to negotiate: no features, no
//! indirect descriptors, no event index, no interrupt. Boot info says where the guest sees it
//! ([`block_queue`](crate::boot::BootInfo::block_queue)), that there is a device
//! ([`feature::BLOCK`](crate::boot::feature::BLOCK)) and how many slots of 4 KiB it has. The device is
//! ready when the guest starts.
//!
//! ```text
//! DESCRIPTORS_AT   QUEUE_SIZE descriptors of 16 bytes        the guest writes, the VMM reads
//! AVAIL_AT         flags, idx, QUEUE_SIZE heads of 2 bytes   the guest writes, the VMM reads
//! USED_AT          flags, idx, QUEUE_SIZE elements of 8      the VMM writes, the guest reads
//! STATE_AT         one word, see [`NEEDS_RESET`]             the VMM writes, the guest reads
//! REQUESTS_AT      headers and status bytes, anywhere here   both
//! ```
//!
//! A request is a chain of descriptors:
//!
//! | descriptor | bytes | where | who writes |
//! | --- | --- | --- | --- |
//! | header: type, reserved, sector (u32, u32, u64) | 16 | behind `REQUESTS_AT` | guest |
//! | data, not for [`FLUSH`] | 4,096 | a frame that the guest has | the device for [`READ`], the guest for [`WRITE`] |
//! | status | 1 | behind `REQUESTS_AT` | device |
//!
//! The sector is the slot times [`SECTORS_PER_SLOT`]. A frame stays with the device until its request
//! is used; an exchange that gives it back before that is refused
//! ([`NotYours`](crate::exchange::Shortfall::NotYours)).
//!
//! The guest tells of new requests by `out BLOCK_PORT, eax` with [`KICK`], or with [`WAIT`] and the last
//! used index that it has seen: that also waits, for a bounded time, until the index is another.

use crate::addr::PAGE_BYTES;

/// The I/O port of kicks, right behind the hypercalls'.
pub const BLOCK_PORT: u16 = crate::call::CALL_PORT + 4;
/// Look at the queue.
pub const KICK: u32 = 0;
/// Look at the queue, and wait until the used index isn't the one in the low 16 bits, but not for ever:
/// the guest looks, and may ask again. Comes back at once when nothing is in flight.
pub const WAIT: u32 = 1 << 16;

/// Descriptors of the queue.
pub const QUEUE_SIZE: u16 = 1024;
/// Offset of the descriptors in the area.
pub const DESCRIPTORS_AT: u64 = 0;
/// Offset of the ring of what the guest offers.
pub const AVAIL_AT: u64 = 4 * PAGE_BYTES;
/// Offset of the ring of what the device is done with.
pub const USED_AT: u64 = 5 * PAGE_BYTES;
/// Offset of the device's state, a `u32`.
pub const STATE_AT: u64 = 8 * PAGE_BYTES - 4;
/// Offset of headers and status bytes.
pub const REQUESTS_AT: u64 = 8 * PAGE_BYTES;
/// Bytes of the whole area.
pub const AREA_BYTES: u64 = 10 * PAGE_BYTES;

/// Bit of the state word (DEVICE_NEEDS_RESET): the queue made no sense, the device looks at it no more,
/// and nothing is in flight.
pub const NEEDS_RESET: u32 = 64;

/// Bytes of a header.
pub const HEADER_BYTES: u32 = 16;
/// Sectors of 512 bytes in a slot.
pub const SECTORS_PER_SLOT: u64 = PAGE_BYTES / 512;

/// Type of a request that fills the data from the slot.
pub const READ: u32 = 0;
/// Type of a request that writes the data to the slot.
pub const WRITE: u32 = 1;
/// Type of a request that makes all writes durable that are done.
pub const FLUSH: u32 = 4;

/// Status: done.
pub const STATUS_OK: u8 = 0;
/// Status: the file couldn't be read or written.
pub const STATUS_IO: u8 = 1;
/// Status: the request makes no sense.
pub const STATUS_REFUSED: u8 = 2;
/// Status: no room for the file's data. Not one of virtio's, which has none for it.
pub const STATUS_NO_SPACE: u8 = 0x80;

const _: () = assert!(QUEUE_SIZE.is_power_of_two());
const _: () = assert!(DESCRIPTORS_AT + 16 * QUEUE_SIZE as u64 <= AVAIL_AT);
const _: () = assert!(AVAIL_AT + 6 + 2 * QUEUE_SIZE as u64 <= USED_AT);
const _: () = assert!(USED_AT + 6 + 8 * QUEUE_SIZE as u64 <= STATE_AT);
