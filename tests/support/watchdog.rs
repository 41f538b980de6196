//! Ends the run when a test hangs, and says which test it is and what it did last.
//!
//! What the harness itself waits for ends after [`PATIENCE`](super::PATIENCE), and fails that test alone. This is for the
//! rest: a program that does not exit, a loop that never ends, a write that nobody reads. A thread cannot be stopped from
//! outside, so the whole run is aborted. Each test is known from its first step in the harness to the end of its thread.

use std::io::Write;
use std::panic::Location;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, Once, PoisonError, Weak};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// How long a test may take that has not asked for more; several times what any of them takes on a busy machine.
const LIMIT: Duration = Duration::from_secs(300);

/// Seconds, in place of [`LIMIT`].
pub const LIMIT_VARIABLE: &str = "SNIGATE_TEST_LIMIT";

struct Test {
    name: String,
    begun: Instant,
    limit: Duration,
    last: Option<Step>,
}

struct Step {
    at: &'static Location<'static>,
    when: Instant,
    what: String,
}

thread_local! {
    static THIS: Option<Arc<Mutex<Test>>> = begin();
}

static RUNNING: Mutex<Vec<Weak<Mutex<Test>>>> = Mutex::new(Vec::new());
static BEGUN: Condvar = Condvar::new();

/// What this test does next, as its caller's place in the source.
#[track_caller]
pub fn step(what: impl Into<String>) {
    let step = Step { at: Location::caller(), when: Instant::now(), what: what.into() };
    with_this(|test| test.last = Some(step));
}

/// Lets this test take so long, if that is longer than others may.
pub fn may_take(limit: Duration) {
    with_this(|test| test.limit = test.limit.max(limit));
}

fn with_this(change: impl FnOnce(&mut Test)) {
    // Destructors of other thread-locals may still use the harness.
    let _ = THIS.try_with(|this| this.as_ref().map(|test| change(&mut lock(test))));
}

fn begin() -> Option<Arc<Mutex<Test>>> {
    static WATCH: Once = Once::new();
    // Threads that tests start have no name, and end with their test or outlive it.
    let name = std::thread::current().name()?.to_owned();
    let limit = std::env::var(LIMIT_VARIABLE).map_or(LIMIT, |text| Duration::from_secs(text.parse().unwrap()));
    let test = Arc::new(Mutex::new(Test { name, begun: Instant::now(), limit, last: None }));
    lock(&RUNNING).push(Arc::downgrade(&test));
    WATCH.call_once(|| drop(std::thread::spawn(watch)));
    BEGUN.notify_all();
    Some(test)
}

fn watch() {
    let mut running = lock(&RUNNING);
    loop {
        running.retain(|test| test.strong_count() > 0);
        let tests: Vec<_> = running.iter().filter_map(Weak::upgrade).collect();
        let left = |test: &Arc<Mutex<Test>>| {
            let test = lock(test);
            test.limit.saturating_sub(test.begun.elapsed())
        };
        let next = tests.iter().map(left).min().unwrap_or(LIMIT);
        if next.is_zero() {
            give_up(&tests);
        }
        // Not held while waiting: a test has ended when its own is the last.
        drop(tests);
        running = BEGUN.wait_timeout(running, next).unwrap_or_else(PoisonError::into_inner).0;
    }
}

fn give_up(tests: &[Arc<Mutex<Test>>]) -> ! {
    let mut told = String::from("\n");
    for test in tests {
        let test = lock(test);
        let is_late = test.begun.elapsed() >= test.limit;
        let which = if is_late { "HANGS" } else { "runs" };
        told += &format!("{} {which}, for {:.0?}", test.name, test.begun.elapsed());
        if let Some(Step { at, when, what }) = &test.last {
            told += &format!("; its last step, {:.0?} ago at {at}: {what}", when.elapsed());
        }
        told += "\n";
    }
    told += &format!("The run is aborted. {LIMIT_VARIABLE} is how many seconds a test may take.\n");
    // Not by `eprintln`, which goes to the output of the test that was first.
    let _ = std::io::stderr().write_all(told.as_bytes());
    for child in children() {
        let _ = kill_process(child, Signal::KILL);
    }
    std::process::abort()
}

fn children() -> impl Iterator<Item = Pid> {
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    processes.filter_map(|process| {
        let stat = std::fs::read_to_string(process.path().join("stat")).ok()?;
        // The name, in parentheses, may have anything in it.
        let parent = stat.rsplit_once(')')?.1.split_whitespace().nth(1)?;
        let pid = process.file_name().to_str()?.parse().ok()?;
        (parent.parse() == Ok(std::process::id())).then(|| Pid::from_raw(pid))?
    })
}

/// Also when a test has failed while it held it.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
