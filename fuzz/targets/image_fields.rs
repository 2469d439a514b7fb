//! See [`decoders::image`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| decoders::image::check_changed(data));
