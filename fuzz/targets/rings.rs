//! See [`decoders::rings`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| decoders::rings::check(data));
