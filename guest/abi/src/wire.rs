//! Fixed layouts as bytes: [`Wire`] and the macro that derives it.

use core::fmt;

/// A value with a fixed little-endian layout of `SIZE_BYTES` bytes.
pub trait Wire: Sized {
    /// Encoded size.
    const SIZE_BYTES: usize;

    /// Writes the value to the first [`Self::SIZE_BYTES`] bytes of `out`.
    ///
    /// # Errors
    /// [`DecodeError::Short`] when `out` is smaller than that; nothing is written then.
    fn encode(&self, out: &mut [u8]) -> Result<(), DecodeError>;

    /// Reads a value from the first [`Self::SIZE_BYTES`] bytes of `bytes`.
    ///
    /// # Errors
    /// [`DecodeError`] names the first thing that isn't as agreed.
    fn decode(bytes: &[u8]) -> Result<Self, DecodeError>;
}

/// Why bytes aren't the value that they should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecodeError {
    /// Fewer bytes than the layout has.
    Short {
        /// Bytes that the layout has.
        need_bytes: usize,
        /// Bytes that were there.
        have_bytes: usize,
    },
    /// A magic number, a tag or a field with a value that has no meaning.
    Value {
        /// The field's name in this crate.
        field: &'static str,
        /// What was found there.
        found: u64,
    },
    /// The other side was built for another version of this crate.
    Version {
        /// The version found.
        found: u32,
    },
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Short { need_bytes, have_bytes } => {
                write!(f, "{have_bytes} bytes where the layout has {need_bytes}")
            }
            Self::Value { field, found } => write!(f, "{field} has the meaningless value {found:#x}"),
            Self::Version { found } => {
                write!(f, "built for ABI version {found}, this side has {}", crate::ABI_VERSION)
            }
        }
    }
}

impl core::error::Error for DecodeError {}

/// A field of a wire struct.
pub(crate) trait Field: Sized {
    const SIZE_BYTES: usize;
    fn put(&self, out: &mut [u8]);
    fn take(bytes: &[u8]) -> Self;
}

macro_rules! int_field {
    ($($t:ty),*) => {$(
        impl Field for $t {
            const SIZE_BYTES: usize = size_of::<$t>();
            fn put(&self, out: &mut [u8]) {
                out.copy_from_slice(&self.to_le_bytes());
            }
            fn take(bytes: &[u8]) -> Self {
                let mut raw = [0; size_of::<$t>()];
                raw.copy_from_slice(bytes);
                Self::from_le_bytes(raw)
            }
        }
    )*};
}
int_field!(u8, u16, u32, u64);

impl<T: Field + Copy + Default, const N: usize> Field for [T; N] {
    const SIZE_BYTES: usize = T::SIZE_BYTES * N;
    fn put(&self, out: &mut [u8]) {
        for (value, chunk) in self.iter().zip(out.chunks_exact_mut(T::SIZE_BYTES)) {
            value.put(chunk);
        }
    }
    fn take(bytes: &[u8]) -> Self {
        let mut all = [T::default(); N];
        for (value, chunk) in all.iter_mut().zip(bytes.chunks_exact(T::SIZE_BYTES)) {
            *value = T::take(chunk);
        }
        all
    }
}

/// Declares a `#[repr(C)]` struct whose encoding is its fields in order, asserts that Rust's layout
/// has no hidden padding, and implements [`Wire`] (`check` decides whether decoded fields mean
/// something).
macro_rules! wire_struct {
    (
        $(#[$meta:meta])*
        pub struct $name:ident [$size:expr] {
            $($(#[$fmeta:meta])* pub $field:ident: $ty:ty,)*
        }
    ) => {
        $(#[$meta])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct $name {
            $($(#[$fmeta])* pub $field: $ty,)*
        }

        const _: () = assert!(size_of::<$name>() == $size);
        const _: () = assert!(0 $(+ <$ty as $crate::wire::Field>::SIZE_BYTES)* == $size);

        impl $crate::Wire for $name {
            const SIZE_BYTES: usize = $size;

            fn encode(&self, out: &mut [u8]) -> Result<(), $crate::DecodeError> {
                let have_bytes = out.len();
                let Some(mut rest) = out.get_mut(..$size) else {
                    return Err($crate::DecodeError::Short { need_bytes: $size, have_bytes });
                };
                $(
                    let (head, tail) = rest.split_at_mut(<$ty as $crate::wire::Field>::SIZE_BYTES);
                    $crate::wire::Field::put(&self.$field, head);
                    rest = tail;
                )*
                let _ = rest;
                Ok(())
            }

            fn decode(bytes: &[u8]) -> Result<Self, $crate::DecodeError> {
                let have_bytes = bytes.len();
                let Some(mut rest) = bytes.get(..$size) else {
                    return Err($crate::DecodeError::Short { need_bytes: $size, have_bytes });
                };
                $(
                    let (head, tail) = rest.split_at(<$ty as $crate::wire::Field>::SIZE_BYTES);
                    let $field = <$ty as $crate::wire::Field>::take(head);
                    rest = tail;
                )*
                let _ = rest;
                let value = Self { $($field),* };
                value.check()?;
                Ok(value)
            }
        }
    };
}
pub(crate) use wire_struct;
