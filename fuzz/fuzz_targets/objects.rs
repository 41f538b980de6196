#![no_main]

// Any file with objects of Kubernetes is translated or refused, and an error names what is wrong.
libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    if let Err(error) = snigate::internals::objects(input) {
        assert!(!error.is_empty());
    }
});
