//! Random schedules of writes, stalls, closes and resets on real sockets, checked against the relay's guarantees. In half of
//! them the relay comes to rest and continues again and again.
//!
//! `SNIGATE_SCHEDULES=100000 cargo test --release --lib schedules` runs more of them; a failure names its seed, which
//! `SNIGATE_SEED` runs alone.

use std::sync::LazyLock;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::tests::{relay_with_rests, reset};
use super::*;

const SETTINGS: RelaySettings = RelaySettings {
    engine: Engine::Auto,
    park_after: None,
    progress: None,
    idle: Duration::from_secs(20),
    half_close: Duration::from_secs(20),
    stalled: Duration::from_secs(20),
    keepalive: TcpOptions::DEFAULT,
};

/// Schedules that once failed.
const REGRESSIONS: [u64; 0] = [];

#[derive(Clone, Copy, Debug)]
enum Action {
    Write(usize),
    Stall(u32),
    Reset,
}

/// The script of one side.
#[derive(Clone, Debug)]
struct Script {
    steps: Vec<Action>,
    /// The size of reads, and the pause between them.
    read: usize,
    read_stall: u32,
}

impl Script {
    fn random(random: &mut Random) -> Self {
        let mut steps = Vec::new();
        for _ in 0..random.below(8) {
            steps.push(match random.below(10) {
                0..6 => Action::Write(random.size()),
                6..9 => Action::Stall(random.below(30)),
                _ => Action::Reset,
            });
        }
        Self { steps, read: random.size().max(200), read_stall: random.below(4) }
    }

    fn resets(&self) -> bool {
        self.steps.iter().any(|step| matches!(step, Action::Reset))
    }
}

/// What one side observed.
#[derive(Debug, Default)]
struct Seen {
    sent: usize,
    finished: bool,
    received: usize,
    got_fin: bool,
    got_reset: bool,
}

/// xorshift64: schedules must be the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: u32) -> u32 {
        u32::try_from(self.next() % u64::from(limit)).unwrap()
    }

    /// As often a few bytes as many.
    fn size(&mut self) -> usize {
        let magnitude = self.below(18);
        usize::try_from(self.next() % (2 << magnitude)).unwrap()
    }
}

/// The bytes that each side sends.
static STREAM: LazyLock<Vec<u8>> = LazyLock::new(|| {
    (0..8 * 262_144usize).map(|at| u8::try_from((at ^ (at >> 8) ^ (at >> 16)) & 0xff).unwrap()).collect()
});

async fn pair(listener: &TcpListener) -> (TcpStream, TcpStream) {
    let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    loop {
        let (far, peer) = listener.accept().await.unwrap();
        // Others on the machine may connect to any port.
        if peer == near.local_addr().unwrap() {
            return (near, far);
        }
    }
}

async fn stall(times: u32) {
    for _ in 0..times {
        tokio::task::yield_now().await;
    }
}

async fn play(stream: TcpStream, script: Script) -> Seen {
    let abort = CancellationToken::new();
    let writer = async {
        let (mut sent, mut got_reset) = (0, false);
        'steps: for step in &script.steps {
            match step {
                Action::Stall(times) => stall(*times).await,
                Action::Reset => {
                    abort.cancel();
                    return (sent, false, false);
                }
                Action::Write(length) => {
                    let bytes = &STREAM[sent..sent + length];
                    let mut written = 0;
                    while written < bytes.len() {
                        stream.writable().await.unwrap();
                        match stream.try_write(&bytes[written..]) {
                            Ok(more) => written += more,
                            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                            Err(_) => {
                                got_reset = true;
                                sent += written;
                                break 'steps;
                            }
                        }
                    }
                    sent += written;
                }
            }
        }
        let finished = rustix::net::shutdown(&stream, rustix::net::Shutdown::Write).is_ok() && !got_reset;
        (sent, finished, got_reset)
    };
    let reader = async {
        let mut seen = Seen::default();
        let mut buffer = vec![0; script.read];
        loop {
            stall(script.read_stall).await;
            stream.readable().await.unwrap();
            match stream.try_read(&mut buffer) {
                Ok(0) => break seen.got_fin = true,
                Ok(length) => {
                    let expected = &STREAM[seen.received..seen.received + length];
                    assert!(buffer[..length] == *expected, "other bytes after {}", seen.received);
                    seen.received += length;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => break seen.got_reset = true,
            }
        }
        seen
    };
    let mut seen = Seen::default();
    let read = async {
        tokio::select! {
            seen = reader => seen,
            () = abort.cancelled() => Seen::default(),
        }
    };
    let ((sent, finished, got_reset), read) = tokio::join!(writer, read);
    seen.sent = sent;
    seen.finished = finished;
    seen.received = read.received;
    // The kernel reports a reset once, to the first call; the other half then reads an EOF.
    seen.got_reset = read.got_reset || got_reset;
    seen.got_fin = read.got_fin && !seen.got_reset;
    if abort.is_cancelled() {
        reset(stream);
    }
    seen
}

/// Whether the relay comes to rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rests {
    Never,
    /// At random polls, which includes every possible moment.
    Often,
}

async fn run(seed: u64, engine: Engine, rests: Rests, listener: &TcpListener) {
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    stall(random.below(3)).await;
    let scripts = [Script::random(&mut random), Script::random(&mut random)];
    let [client_script, upstream_script] = scripts.clone();
    let (client, client_side) = pair(listener).await;
    let (upstream_side, upstream) = pair(listener).await;
    let mut delivered = [0, 0];
    let count = |side, bytes| delivered[usize::from(side == Side::Upstream)] += bytes;
    let stop = std::future::pending();
    let settings = RelaySettings { engine, ..SETTINGS };
    let mut when = Random(random.next());
    let frequency = 2 + when.below(6);
    let rest = |_: &mut Context<'_>| (rests == Rests::Often && when.below(frequency) == 0).then(|| when.below(4));
    let relay = relay_with_rests(client_side, upstream_side, Vec::new(), settings, stop, count, rest);
    let (end, client, upstream) =
        tokio::join!(relay, play(client, client_script.clone()), play(upstream, upstream_script.clone()));

    let context =
        format!("seed {seed}, {engine:?}, {rests:?}: {scripts:?}\n{end:?} {client:?} {upstream:?} {delivered:?}");
    let any_reset = scripts.iter().any(Script::resets);
    match end {
        RelayEnd::Closed(_) => {}
        RelayEnd::Reset(side) | RelayEnd::ClosedThenReset(side) => {
            let resetter = if side == Side::Client { &client_script } else { &upstream_script };
            assert!(resetter.resets() || any_reset, "{context}");
        }
        _ => panic!("neither closed nor reset: {context}"),
    }
    for (from, to, script, delivered) in
        [(&client, &upstream, &upstream_script, delivered[0]), (&upstream, &client, &client_script, delivered[1])]
    {
        assert!(to.received <= delivered && delivered <= from.sent, "{context}");
        if script.resets() {
            continue;
        }
        assert!(to.got_fin != to.got_reset, "either a FIN or a reset: {context}");
        if to.got_fin {
            assert!(from.finished && to.received == from.sent, "a FIN comes after all bytes: {context}");
        } else {
            assert!(any_reset, "nobody reset: {context}");
        }
    }
}

#[test]
fn z5_d11_d12_schedules() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let count = number("SNIGATE_SCHEDULES").unwrap_or(300);
    let seeds: Vec<u64> = match number("SNIGATE_SEED") {
        Some(seed) => vec![seed],
        None => REGRESSIONS.into_iter().chain(1..=count).collect(),
    };
    set_pipe_limit(64);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        for seed in seeds {
            for engine in [Engine::Auto, Engine::Copy, Engine::Splice] {
                for rests in [Rests::Never, Rests::Often] {
                    let running = tokio::time::timeout(Duration::from_secs(60), run(seed, engine, rests, &listener));
                    assert!(running.await.is_ok(), "seed {seed}, {engine:?}, {rests:?} hangs");
                }
            }
        }
    });
}
