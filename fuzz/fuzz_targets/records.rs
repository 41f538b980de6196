#![no_main]

#[path = "../mutate.rs"]
mod mutate;

libfuzzer_sys::fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    mutate::hello(data, size, max_size, seed)
});
libfuzzer_sys::fuzz_target!(|input: &[u8]| snigate_fuzz::records(input));
