//! x

pub mod emulate;
