#!/usr/bin/env bash
# The release binary, built so that one commit and one toolchain give the same bytes in any directory: no path of this
# machine is in it. CARGO_TARGET_DIR says where it is built; arguments are passed to cargo.
set -euo pipefail
cd "$(dirname "$0")/.."

sources=$(pwd -P)
home=$(cd "${CARGO_HOME:-$HOME/.cargo}" && pwd -P)
target=${CARGO_TARGET_DIR:-$sources/target}
export CARGO_TARGET_DIR=$target

# The last that matches counts: the target directory may be within the sources.
maps=("$sources=/snigate" "$home=/cargo" "$target=/target")
separator=$'\x1f'
flags=
for map in "${maps[@]}"; do
    flags+=${flags:+$separator}--remap-path-prefix=$map
    CFLAGS="${CFLAGS:-} -ffile-prefix-map=$map"
done
export CARGO_ENCODED_RUSTFLAGS=$flags CFLAGS

cargo build --locked --release --no-default-features --features router,top,jemalloc "$@"
sha256sum "$target/release/snigate"
