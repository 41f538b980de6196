#![no_main]

#[path = "../mutate.rs"]
mod mutate;
#[path = "../openssl.rs"]
mod openssl_server;

libfuzzer_sys::fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    mutate::hello(data, size, max_size, seed)
});
libfuzzer_sys::fuzz_target!(|input: &[u8]| openssl_server::differential(input));
