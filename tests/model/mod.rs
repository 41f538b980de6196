//! The whole path, against a model: random clients, endpoints and operations, generated from seeds. After each step it must
//! be as the model says: which endpoint a client may reach, which bytes arrive, how each side sees the end, what is logged and
//! counted. A seed that fails is shrunk to a short script, and printed.
//!
//! `SNIGATE_SEEDS=1..1000 cargo test --test main model -- --nocapture` runs these seeds; `SNIGATE_SEEDS=17` runs one. With
//! `--ignored`, there are names, too, and a name server.

/// What is on the wire.
mod bytes;
/// What endpoints answer when they are asked for their health.
mod checks;
/// What is observed, beside what is expected.
mod compare;
mod endpoints;
/// The model.
mod expectation;
/// A name that endpoints have, in a network of its own.
mod names;
mod peer;
/// One script, step by step.
mod run;
/// What is generated from a seed.
mod script;
mod shrink;
/// The router, its clients and endpoints.
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use self::names::Names;
use self::script::Script;
use crate::support::{PATIENCE, watchdog};

const SEEDS: &str = "SNIGATE_SEEDS";
const DEFAULT: std::ops::RangeInclusive<u64> = 1..=20;
/// Scripts at a time: they wait more than they compute.
const AT_A_TIME: usize = 24;
/// While one is made shorter, again and again.
const SHORT_PATIENCE: Duration = Duration::from_secs(6);

#[test]
fn the_router_does_what_the_model_says() {
    try_scripts(false);
}

#[test]
#[ignore = "needs root, unshare, nsenter and ip"]
fn the_router_follows_names_as_the_model_says() {
    try_scripts(true);
}

fn try_scripts(has_names: bool) {
    let seeds = std::env::var(SEEDS).map_or(DEFAULT, |text| parse(&text));
    watchdog::may_take(Duration::from_secs(300 + 2 * (seeds.end() - seeds.start())));
    let (next, begun) = (AtomicU64::new(*seeds.start()), Instant::now());
    let tried = AtomicU64::new(0);
    let failures: Vec<Failure> = std::thread::scope(|scope| {
        let workers: Vec<_> =
            (0..AT_A_TIME).map(|_| scope.spawn(|| first_failure(&next, *seeds.end(), &tried, has_names))).collect();
        workers.into_iter().filter_map(|worker| worker.join().unwrap()).collect()
    });
    eprintln!("{} seeds in {:.1?}, {} failed", tried.load(Relaxed), begun.elapsed(), failures.len());
    for Failure { script, error } in &failures {
        eprintln!("seed {}: {}", script.seed, error.lines().next().unwrap_or_default());
    }
    // The shortest way to see it.
    let shortest = failures.into_iter().min_by_key(|failure| failure.script.steps.len());
    if let Some(Failure { script, error }) = shortest {
        let shrink = |names: Option<&Names>| shrink::shrink(script, error, |script| run(script, SHORT_PATIENCE, names));
        let (script, error) = with_names(has_names, shrink);
        panic!("{script}\n{error}\n{SEEDS}={} runs the whole script again", script.seed);
    }
}

struct Failure {
    script: Script,
    error: String,
}

/// Takes seeds until one fails, for which the others stop, too.
fn first_failure(next: &AtomicU64, last: u64, tried: &AtomicU64, has_names: bool) -> Option<Failure> {
    with_names(has_names, |names| {
        loop {
            let seed = next.fetch_add(1, Relaxed);
            if seed > last {
                return None;
            }
            let script = Script::generate(seed, has_names);
            tried.fetch_add(1, Relaxed);
            if let Err(error) = run(&script, PATIENCE, names) {
                next.store(last + 1, Relaxed);
                return Some(Failure { script, error });
            }
        }
    })
}

fn with_names<T: Send>(has_names: bool, run: impl FnOnce(Option<&Names>) -> T + Send) -> T {
    if has_names { Names::with(|names| run(Some(names))) } else { run(None) }
}

/// A panic of the harness is a failure like any other.
fn run(script: &Script, patience: Duration, names: Option<&Names>) -> Result<(), String> {
    catch_unwind(AssertUnwindSafe(|| run::play(script, patience, names))).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        Err(text.or_else(|| Some((*panic.downcast_ref::<&str>()?).into())).unwrap_or_else(|| "a panic".into()))
    })
}

fn parse(text: &str) -> std::ops::RangeInclusive<u64> {
    let number = |text: &str| text.trim_start_matches('=').parse().unwrap_or_else(|_| panic!("{SEEDS}={text}"));
    match text.split_once("..") {
        Some((first, last)) => number(first)..=number(last),
        None => number(text)..=number(text),
    }
}
