//! See [`decoders::abi`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| decoders::abi::check(data));
