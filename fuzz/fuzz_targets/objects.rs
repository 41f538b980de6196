#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| snigate_fuzz::objects(input));
