//! See [`decoders::violation`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| decoders::violation::check(data));
