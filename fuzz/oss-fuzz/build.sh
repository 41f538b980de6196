#!/usr/bin/env bash
# Builds all targets, with their seeds and dictionaries, as OSS-Fuzz expects them in $OUT: TARGET, TARGET_seed_corpus.zip,
# TARGET.dict and TARGET.options. Works anywhere with cargo-fuzz, zip and libssl-dev; .ci/run fuzzes what it makes. Options
# are passed on to `cargo fuzz build`.
set -euo pipefail
cd "$(dirname "$0")/../.."
: "${OUT:?the directory to write to}"

toolchain=()
if rustup run nightly rustc --version >/dev/null 2>&1; then
    toolchain=(+nightly)
else
    # The sanitizers of libFuzzer are behind a nightly flag; the stable compiler has them, too.
    export RUSTC_BOOTSTRAP=1
fi
cargo "${toolchain[@]}" fuzz build -O --debug-assertions "$@"
host=$(rustc -vV | sed -n 's/^host: //p')

for source in fuzz/fuzz_targets/*.rs; do
    target=$(basename "$source" .rs)
    cp "${CARGO_TARGET_DIR:-fuzz/target}/$host/release/$target" "$OUT/"
    printf '[libfuzzer]\nmax_len = 65536\ntimeout = 10\n' >"$OUT/$target.options"
    seeds=()
    case $target in
    client_hello | records | differential | openssl)
        seeds=(fuzz/seeds/client_hello fuzz/seeds/client_hello/found tests/hellos/bytes)
        cp fuzz/oss-fuzz/client_hello.dict "$OUT/$target.dict"
        ;;
    *)
        for directory in "fuzz/seeds/$target" "fuzz/seeds/$target/found"; do
            [ ! -d "$directory" ] || seeds+=("$directory")
        done
        ;;
    esac
    case $target in
    # The keys and values of the configuration, from its schema.
    config) grep -oE '"[a-z0-9_]{2,}"' deploy/snigate.schema.json | sort -u >"$OUT/$target.dict" ;;
    proxy_header) cp fuzz/oss-fuzz/proxy_header.dict "$OUT/$target.dict" ;;
    esac
    [ ${#seeds[@]} -gt 0 ] || continue
    rm -f "$OUT/${target}_seed_corpus.zip"
    find "${seeds[@]}" -maxdepth 1 -type f -print0 | xargs -0 zip -qj "$OUT/${target}_seed_corpus.zip"
done
