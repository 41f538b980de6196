//! Any file is read or refused, and an error names what is wrong.

#![no_main]

use libfuzzer_sys::fuzz_target;
use snigate::config::Config;

fuzz_target!(|file: &[u8]| {
    match Config::from_yaml(file) {
        Ok(config) => assert!(!config.listeners.is_empty() && !config.routes.is_empty()),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});
