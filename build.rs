//! Passes on the commit that a release is built from, for `snigate --version`.

use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let is_release = std::env::var("PROFILE").is_ok_and(|profile| profile == "release");
    // Other builds would start anew after each commit.
    let commit = if is_release { commit() } else { None };
    let commit = commit.map_or_else(String::new, |commit| format!(" ({commit})"));
    println!("cargo:rustc-env=VERSION_WITH_COMMIT={}{commit}", env!("CARGO_PKG_VERSION"));
}

/// `None` outside a checkout, as in a source package, which may be within the checkout of something else.
fn commit() -> Option<String> {
    if !Path::new(".git").exists() {
        return None;
    }
    // It changes with each commit, and when another branch is checked out.
    println!("cargo:rerun-if-changed={}", git(&["rev-parse", "--git-path", "logs/HEAD"])?);
    git(&["rev-parse", "--short=12", "HEAD"])
}

fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8(output.stdout).ok()?.trim().to_owned())
}
