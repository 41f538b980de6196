//! Passes on the commit that a release is built from, for `snigate --version`.

use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let mut version = env!("CARGO_PKG_VERSION").to_owned();
    // Other builds would start anew after each commit.
    if std::env::var("PROFILE").is_ok_and(|profile| profile == "release") {
        // It changes with each commit, and when another branch is checked out.
        if let Some(log) = git(&["rev-parse", "--git-path", "logs/HEAD"]) {
            println!("cargo:rerun-if-changed={log}");
        }
        if let Some(commit) = git(&["rev-parse", "--short=12", "HEAD"]) {
            version += &format!(" ({commit})");
        }
    }
    println!("cargo:rustc-env=VERSION_WITH_COMMIT={version}");
}

/// `None` outside a checkout, as in a source package, which may be within the checkout of something else.
fn git(arguments: &[&str]) -> Option<String> {
    if !std::path::Path::new(".git").exists() {
        return None;
    }
    let output = Command::new("git").args(arguments).output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8(output.stdout).ok()?.trim().to_owned())
}
