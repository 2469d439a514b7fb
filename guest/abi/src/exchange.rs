//! The frame exchange (paper, section 2, provision 2): one call gives frames back and asks for
//! frames, any number, any mix of sizes.
//!
//! Frames travel as [`Extent`]s: `count` pages of one size, contiguous, aligned to that size. A
//! granted frame is backed by real memory, and zero, before the call returns; a frame given back is
//! out of the guest's reach before the call returns, and its content is gone.
//!
//! Order: everything is checked, then taken back, then granted. With [`Policy::AllOrNothing`] a
//! failure leaves every frame where it was; with [`Policy::Partial`] the frames given back are
//! taken, and the reply says how many of each size were granted.

use crate::DecodeError;
use crate::addr::{Frame, PageSize};
use crate::call::PAYLOAD_MAX_BYTES;
use crate::wire::{Wire, wire_struct};

/// Extents that fit into one call, each way.
pub const EXTENTS_MAX: usize = (PAYLOAD_MAX_BYTES - ExchangeRequest::SIZE_BYTES) / Extent::SIZE_BYTES;

const _: () = assert!(ExchangeRequest::SIZE_BYTES == ExchangeReply::SIZE_BYTES);
const _: () = assert!(EXTENTS_MAX >= 4000);

wire_struct! {
    /// `count` contiguous pages of one size.
    pub struct Extent [16] {
        /// Number of the first [`Frame`], a multiple of the size.
        pub first: u64,
        /// How many pages; not zero.
        pub count: u32,
        /// [`PageSize`] by number.
        pub size: u32,
    }
}

impl Extent {
    /// The extent of `count` pages of `size` from `first`.
    #[must_use]
    pub const fn new(first: Frame, count: u32, size: PageSize) -> Self {
        Self { first: first.get(), count, size: size as u32 }
    }

    fn check(&self) -> Result<(), DecodeError> {
        let Some(size) = PageSize::from_wire(self.size) else {
            return Err(DecodeError::Value { field: "extent size", found: self.size.into() });
        };
        if self.count == 0 {
            return Err(DecodeError::Value { field: "extent count", found: 0 });
        }
        let frames = u64::from(self.count).saturating_mul(size.frames());
        let end = self.first.checked_add(frames);
        if !Frame::new(self.first).is_aligned(size) || end.is_none_or(|end| end > 1 << 40) {
            return Err(DecodeError::Value { field: "extent first", found: self.first });
        }
        Ok(())
    }

    /// First frame.
    #[must_use]
    pub const fn first(&self) -> Frame {
        Frame::new(self.first)
    }

    /// The pages' size; a decoded extent always has one.
    #[must_use]
    pub const fn size(&self) -> PageSize {
        match PageSize::from_wire(self.size) {
            Some(size) => size,
            None => PageSize::Size4K,
        }
    }

    /// 4 KiB frames in the extent.
    #[must_use]
    pub const fn frames(&self) -> u64 {
        (self.count as u64).saturating_mul(self.size().frames())
    }
}

/// What happens when not everything can be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Policy {
    /// Then nothing happens.
    AllOrNothing = 0,
    /// Then as much as there is, and the reply says how much.
    Partial = 1,
}

wire_struct! {
    /// The request; the extents given back follow.
    pub struct ExchangeRequest [64] {
        /// Extents that follow.
        pub give_extents: u32,
        /// [`Policy`].
        pub policy: u32,
        /// Pages wanted of 4 KiB, 2 MiB, 1 GiB.
        pub want_pages: [u64; 3],
        /// The request for frames ([`upcall`](crate::upcall)) that this answers; 0: none.
        pub answers: u64,
        /// Zero.
        pub reserved: [u64; 3],
    }
}

impl ExchangeRequest {
    fn check(&self) -> Result<(), DecodeError> {
        if self.policy > 1 {
            return Err(DecodeError::Value { field: "policy", found: self.policy.into() });
        }
        if self.give_extents as usize > EXTENTS_MAX {
            return Err(DecodeError::Value { field: "give_extents", found: self.give_extents.into() });
        }
        if let Some(&found) = self.reserved.iter().find(|&&word| word != 0) {
            return Err(DecodeError::Value { field: "reserved", found });
        }
        Ok(())
    }

    /// The policy; a decoded request always has one.
    #[must_use]
    pub const fn policy(&self) -> Policy {
        if self.policy == 0 { Policy::AllOrNothing } else { Policy::Partial }
    }
}

/// Why an exchange fell short. Numbers on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Shortfall {
    /// Nothing is missing.
    None = 0,
    /// The guest has no more frames to come (its `--mem` is granted).
    Exhausted = 1,
    /// There are frames, but no aligned run of the size.
    Fragmented = 2,
    /// The host has no memory to back them with.
    HostMemory = 3,
    /// An extent given back isn't (wholly) the guest's; `bad_extent` is its index.
    NotYours = 4,
    /// The grants need more extents than a reply holds.
    ReplyFull = 5,
    /// The pool of frames that the guest shares with others is used up for now; another may give some back.
    Pool = 6,
}

impl Shortfall {
    /// The reason with this number on the wire.
    #[must_use]
    pub const fn from_wire(number: u32) -> Option<Self> {
        Some(match number {
            0 => Self::None,
            1 => Self::Exhausted,
            2 => Self::Fragmented,
            3 => Self::HostMemory,
            4 => Self::NotYours,
            5 => Self::ReplyFull,
            6 => Self::Pool,
            _ => return None,
        })
    }
}

wire_struct! {
    /// The reply; the extents granted follow.
    pub struct ExchangeReply [64] {
        /// Extents that follow.
        pub extents: u32,
        /// [`Shortfall`].
        pub shortfall: u32,
        /// Pages granted of 4 KiB, 2 MiB, 1 GiB.
        pub granted_pages: [u64; 3],
        /// Frames (4 KiB) taken back.
        pub taken_frames: u64,
        /// Index of the extent that was refused, with [`Shortfall::NotYours`].
        pub bad_extent: u64,
        /// Zero.
        pub reserved: [u64; 2],
    }
}

impl ExchangeReply {
    fn check(&self) -> Result<(), DecodeError> {
        if Shortfall::from_wire(self.shortfall).is_none() {
            return Err(DecodeError::Value { field: "shortfall", found: self.shortfall.into() });
        }
        if self.extents as usize > EXTENTS_MAX {
            return Err(DecodeError::Value { field: "extents", found: self.extents.into() });
        }
        Ok(())
    }

    /// Why the exchange fell short, if it did; a decoded reply always has a reason.
    #[must_use]
    pub const fn shortfall(&self) -> Shortfall {
        match Shortfall::from_wire(self.shortfall) {
            Some(reason) => reason,
            None => Shortfall::None,
        }
    }
}
