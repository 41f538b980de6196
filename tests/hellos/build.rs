//! Compiles the bytes of all hellos into the binary, so that it runs without the repository.

use std::fmt::Write as _;
use std::path::Path;
use std::{env, fs};

fn main() {
    let root = env::var("CARGO_MANIFEST_DIR").expect("set by cargo");
    let out = env::var("OUT_DIR").expect("set by cargo");
    let manifest = fs::read_to_string(Path::new(&root).join("hellos.ini")).expect("hellos.ini");
    let mut files: Vec<&str> = manifest.lines().filter_map(|line| line.strip_prefix("bytes = ")).collect();
    files.sort_unstable();
    files.dedup();
    let mut table = String::from("&[\n");
    for file in files {
        let path = format!("{root}/{file}");
        println!("cargo::rerun-if-changed={path}");
        writeln!(table, "    ({file:?}, include_bytes!({path:?})),").expect("a string");
    }
    table += "]\n";
    println!("cargo::rerun-if-changed=hellos.ini");
    fs::write(Path::new(&out).join("files.rs"), table).expect("OUT_DIR");
}
