//! See [`decoders::calls`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| decoders::calls::check(data));
