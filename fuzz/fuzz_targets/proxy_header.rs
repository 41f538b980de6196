#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| snigate_fuzz::proxy_header(input));
