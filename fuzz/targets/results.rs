//! See [`decoders::results`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| decoders::results::check(data));
