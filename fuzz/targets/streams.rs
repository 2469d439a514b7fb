//! See [`decoders::streams`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| decoders::streams::check(data));
