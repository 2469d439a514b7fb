//! See [`decoders::exchange`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| decoders::exchange::check(data));
