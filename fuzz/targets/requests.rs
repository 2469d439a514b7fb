//! See [`decoders::requests`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| decoders::requests::check(data));
