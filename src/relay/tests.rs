use proptest::collection::vec;
use proptest::prelude::*;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::pin::pin;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::tcp::TcpOptions;
use super::*;

const HOUR: Duration = Duration::from_secs(3600);
const SETTINGS: RelaySettings = RelaySettings {
    engine: Engine::Auto,
    park_after: None,
    progress: None,
    idle: Duration::from_secs(24 * 3600),
    half_close: Duration::from_secs(60),
    stalled: HOUR,
    keepalive: TcpOptions { keepalive_count: 7, ..TcpOptions::DEFAULT },
};

async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (near, far) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
    let (near, far) = (near.unwrap(), far.unwrap().0);
    for stream in [&near, &far] {
        TcpOptions::default().apply(stream).unwrap();
    }
    (near, far)
}

struct Relayed {
    client: TcpStream,
    upstream: TcpStream,
    relay: JoinHandle<(RelayEnd, [usize; 2])>,
}

/// Every engine must deliver the same.
const ENGINES: [Engine; 3] = [Engine::Auto, Engine::Copy, Engine::Splice];

async fn relayed(hello: &[u8], settings: RelaySettings) -> Relayed {
    relayed_by(settings.engine, hello, settings).await
}

async fn relayed_by(engine: Engine, hello: &[u8], settings: RelaySettings) -> Relayed {
    let settings = RelaySettings { engine, ..settings };
    set_pipe_limit(64);
    let (client, client_side) = pair().await;
    let (upstream_side, upstream) = pair().await;
    let hello = hello.to_vec();
    let relay = tokio::spawn(async move {
        let mut delivered = [0, 0];
        let count = |side, bytes| delivered[usize::from(side == Side::Upstream)] += bytes;
        let end = relay_and_close(client_side, upstream_side, hello, settings, std::future::pending(), count).await;
        (end, delivered)
    });
    Relayed { client, upstream, relay }
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|number| u8::try_from((number ^ (number >> 8)) & 0xff).unwrap()).collect()
}

async fn read_all(mut stream: impl tokio::io::AsyncRead + Unpin) -> (Vec<u8>, io::Result<usize>) {
    let mut bytes = Vec::new();
    let end = stream.read_to_end(&mut bytes).await;
    (bytes, end)
}

impl<C: FnMut(&mut Context<'_>) -> Poll<RelayCommand>, E: FnMut(Event<'_>)> Owner for (C, E) {
    fn poll_command(&mut self, cx: &mut Context<'_>) -> Poll<RelayCommand> {
        self.0(cx)
    }

    fn on_event(&mut self, event: Event<'_>) {
        self.1(event);
    }
}

fn ignore(_: Event<'_>) {}

/// What `connection::serve` does.
pub(super) async fn relay_and_close(
    client: TcpStream,
    upstream: TcpStream,
    hello: Vec<u8>,
    settings: RelaySettings,
    stop: impl Future<Output = ()>,
    delivered: impl FnMut(Side, usize),
) -> RelayEnd {
    relay_with_rests(client, upstream, hello, settings, stop, delivered, |_| None).await
}

/// `rest` is asked at each poll whether the relay is to come to rest, and for how many turns at most.
pub(super) async fn relay_with_rests(
    mut client: TcpStream,
    mut upstream: TcpStream,
    hello: Vec<u8>,
    settings: RelaySettings,
    stop: impl Future<Output = ()>,
    mut delivered: impl FnMut(Side, usize),
    mut rest: impl FnMut(&mut Context<'_>) -> Option<u32>,
) -> RelayEnd {
    let mut stop = pin!(stop);
    let mut start = Start::Hello(hello);
    loop {
        let on_event = |event: Event<'_>| match event {
            Event::Delivered(from, bytes) => delivered(from, bytes),
            Event::Answered(_) | Event::Unanswered | Event::Report { .. } | Event::Progress { .. } => {}
        };
        let mut turns = None;
        let poll_command = |cx: &mut Context<'_>| {
            if turns.is_none() {
                turns = rest(cx);
                if turns.is_some() {
                    return Poll::Ready(RelayCommand::Rest);
                }
            }
            stop.as_mut().poll(cx).map(|()| RelayCommand::Stop)
        };
        match copy_bidirectional(&client, &upstream, start, &settings, (poll_command, on_event)).await {
            RelayResult::Ended(end) => return end,
            RelayResult::Resting(state) => start = Start::Rest(Box::new(state)),
        }
        let at_rest = [client.into_std().unwrap(), upstream.into_std().unwrap()];
        for _ in 0..turns.unwrap_or(0) {
            let now = Timespec { tv_sec: 0, tv_nsec: 0 };
            let events = PollFlags::IN | PollFlags::RDHUP;
            let mut both = [PollFd::new(&at_rest[0], events), PollFd::new(&at_rest[1], events)];
            if poll(&mut both, Some(&now)).unwrap() > 0 {
                break;
            }
            tokio::task::yield_now().await;
        }
        [client, upstream] = at_rest.map(|socket| TcpStream::from_std(socket).unwrap());
    }
}

fn ended(result: RelayResult) -> RelayEnd {
    match result {
        RelayResult::Ended(end) => end,
        RelayResult::Resting(rest) => panic!("{rest:?}"),
    }
}

/// Four system calls fewer for a connection that is over by then; sockets of clients inherit theirs from the listener.
#[tokio::test(start_paused = true)]
async fn d17_the_upstream_gets_keepalives_at_the_first_look() {
    let (_client, client_side) = pair().await;
    let (near, mut far) = pair().await;
    SockRef::from(&near).set_keepalive(false).unwrap();
    let socket = SockRef::from(&near).try_clone().unwrap();
    let relay = relay_and_close(client_side, near, b"hello".to_vec(), SETTINGS, std::future::pending(), |_, _| {});
    let relay = tokio::spawn(relay);
    far.read_exact(&mut [0; 5]).await.unwrap();
    assert!(!socket.keepalive().unwrap());
    sleep(liveness::CHECK_INTERVAL * 2).await;
    assert!(socket.keepalive().unwrap());
    assert_eq!(socket.tcp_keepalive_retries().unwrap(), 7);
    relay.abort();
}

pub(super) fn reset(stream: TcpStream) {
    reset_on_close(&stream);
    drop(stream);
}

fn is_reset(end: &io::Result<usize>) -> bool {
    end.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::ConnectionReset)
}

#[tokio::test]
async fn d01_answer_arrives_after_the_client_has_closed_its_side() {
    for engine in ENGINES {
        let Relayed { mut client, mut upstream, relay } = relayed_by(engine, b"hello", SETTINGS).await;
        client.write_all(b" world").await.unwrap();
        client.shutdown().await.unwrap();
        let (request, _) = read_all(&mut upstream).await;
        assert_eq!(request, b"hello world");

        let answer = pattern(20_000_000);
        let sent = answer.clone();
        tokio::spawn(async move { upstream.write_all(&sent).await });
        assert!(read_all(client).await.0 == answer);
        assert_eq!(relay.await.unwrap(), (RelayEnd::Closed(Side::Client), [11, 20_000_000]));
    }
}

#[tokio::test]
async fn d02_client_sends_after_the_upstream_has_closed_its_side() {
    for engine in ENGINES {
        let Relayed { mut client, mut upstream, relay } = relayed_by(engine, b"", SETTINGS).await;
        upstream.shutdown().await.unwrap();
        assert_eq!(client.read(&mut [0]).await.unwrap(), 0);

        let request = pattern(20_000_000);
        let sent = request.clone();
        tokio::spawn(async move { client.write_all(&sent).await });
        assert!(read_all(upstream).await.0 == request);
        assert_eq!(relay.await.unwrap().0, RelayEnd::Closed(Side::Upstream));
    }
}

#[tokio::test]
async fn d03_fin_comes_after_all_bytes_to_a_slow_reader() {
    for engine in ENGINES {
        let Relayed { mut client, mut upstream, relay } = relayed_by(engine, b"", SETTINGS).await;
        let bytes = pattern(8_000_000);
        let (mut client_reader, mut client_writer) = client.split();
        let (mut upstream_reader, mut upstream_writer) = upstream.split();
        let send = async |writer: &mut tokio::net::tcp::WriteHalf<'_>| {
            writer.write_all(&bytes).await.unwrap();
            writer.shutdown().await.unwrap();
        };
        let ((), (), up, down) = tokio::join!(
            send(&mut client_writer),
            send(&mut upstream_writer),
            read_slowly(&mut upstream_reader),
            read_slowly(&mut client_reader),
        );
        assert!(up == bytes && down == bytes);
        assert_eq!(relay.await.unwrap().1, [8_000_000, 8_000_000]);
    }
}

async fn read_slowly(reader: &mut (impl tokio::io::AsyncRead + Unpin)) -> Vec<u8> {
    let mut all = Vec::new();
    let mut chunk = [0; 3000];
    loop {
        match reader.read(&mut chunk).await.unwrap() {
            0 => return all,
            length => all.extend_from_slice(&chunk[..length]),
        }
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn d04_what_came_before_a_reset_is_delivered_and_then_the_reset() {
    for engine in ENGINES {
        let Relayed { mut client, mut upstream, relay } = relayed_by(engine, b"", SETTINGS).await;
        let bytes = pattern(1_000_000);
        upstream.write_all(&bytes).await.unwrap();
        reset(upstream);
        let mut received = vec![0; 1];
        client.read_exact(&mut received).await.unwrap();
        let (rest, end) = read_all(client).await;
        received.extend(rest);
        assert!(bytes.starts_with(&received), "a prefix");
        assert!(is_reset(&end), "{end:?}");
        let (end, [_, delivered]) = relay.await.unwrap();
        assert_eq!((end, delivered), (RelayEnd::Reset(Side::Upstream), received.len()));
    }
}

#[tokio::test]
async fn d05_a_reset_is_passed_on_while_the_other_side_is_silent() {
    for engine in ENGINES {
        for half_closed in [false, true] {
            let Relayed { mut client, mut upstream, relay } = relayed_by(engine, b"x", SETTINGS).await;
            upstream.read_exact(&mut [0]).await.unwrap();
            if half_closed {
                client.shutdown().await.unwrap();
                assert_eq!(upstream.read(&mut [0]).await.unwrap(), 0);
            }
            reset(client);
            assert_eq!(relay.await.unwrap().0, RelayEnd::Reset(Side::Client));
            let error = upstream.ready(Interest::ERROR).await.and_then(|_| upstream.take_error()).unwrap();
            assert!(error.is_some());
        }
    }
}

#[tokio::test]
async fn d06_an_error_in_one_direction_loses_no_bytes_of_the_other() {
    for engine in ENGINES.into_iter().cycle().take(30) {
        let Relayed { client, upstream, relay } = relayed_by(engine, b"request", SETTINGS).await;
        let answer = pattern(500_000);
        let (reader, mut writer) = client.into_split();
        let writing: JoinHandle<io::Result<usize>> = tokio::spawn(async move {
            loop {
                writer.write_all(&[0; 1000]).await?;
            }
        });
        // Closed with unread bytes, the upstream's kernel answers further ones with a reset, so the relay's writes
        // fail while it still has parts of the answer.
        upstream.readable().await.unwrap();
        let sent = upstream.try_write(&answer).unwrap();
        drop(upstream);
        let (received, end) = read_all(reader).await;
        // The client's kernel reports the reset to the first call.
        let write_error = writing.await.unwrap();
        assert!(is_reset(&end) || is_reset(&write_error), "{end:?}, {write_error:?}");
        assert!(answer[..sent].starts_with(&received));
        let (end, [_, delivered]) = relay.await.unwrap();
        assert_eq!((end, delivered), (RelayEnd::Reset(Side::Upstream), received.len()), "what was read was delivered");
    }
}

/// As at the end of `kubectl exec`: the server closes, and what the client still sends reaches a closed socket.
#[tokio::test]
async fn d25_data_sent_to_a_closed_socket_is_an_orderly_end() {
    for engine in ENGINES {
        for side in [Side::Client, Side::Upstream] {
            let Relayed { client, upstream, relay } = relayed_by(engine, b"", SETTINGS).await;
            let (mut first, mut last) = if side == Side::Client { (client, upstream) } else { (upstream, client) };
            first.write_all(b"all there is").await.unwrap();
            drop(first);
            assert_eq!(read_all(&mut last).await.0, b"all there is");
            last.write_all(b"goodbye").await.unwrap();
            assert_eq!(relay.await.unwrap().0, RelayEnd::ClosedThenReset(side));
            last.ready(Interest::ERROR).await.unwrap();
            assert!(last.take_error().unwrap().is_some(), "it learns that its last bytes were not read");
        }
    }
}

/// Data that it had acknowledged after its FIN is lost by the reset.
#[tokio::test]
async fn d25_a_reset_after_reading_is_not_an_orderly_end() {
    for engine in ENGINES {
        let Relayed { mut client, mut upstream, relay } = relayed_by(engine, b"", SETTINGS).await;
        upstream.shutdown().await.unwrap();
        assert_eq!(read_all(&mut client).await.0, b"");
        rustix::net::sockopt::set_tcp_quickack(&upstream, true).unwrap();
        client.write_all(b"half of a request").await.unwrap();
        upstream.read_exact(&mut [0; 4]).await.unwrap();
        reset(upstream);
        assert_eq!(relay.await.unwrap().0, RelayEnd::Reset(Side::Upstream));
    }
}

fn send_urgent(stream: &TcpStream, bytes: &[u8]) {
    assert_eq!(rustix::net::send(stream, bytes, rustix::net::SendFlags::OOB), Ok(bytes.len()));
}

#[tokio::test(start_paused = true)]
async fn d18_urgent_bytes_arrive_in_order() {
    for engine in ENGINES {
        let Relayed { mut client, mut upstream, relay } = relayed_by(engine, b"", SETTINGS).await;
        for _ in 0..3 {
            client.write_all(b"before ").await.unwrap();
            send_urgent(&client, b"urgent!");
            client.write_all(b" after").await.unwrap();
            let mut received = [0; 20];
            upstream.read_exact(&mut received).await.unwrap();
            assert_eq!(&received, b"before urgent! after", "{engine:?}");
            send_urgent(&upstream, b"last");
            client.read_exact(&mut received[..4]).await.unwrap();
            assert_eq!(&received[..4], b"last", "{engine:?}: nothing comes after it");
        }
        drop(client);
        drop(upstream);
        relay.await.unwrap();
    }
}

#[tokio::test]
async fn b08_a_probe_ends_only_a_connection_whose_peer_does_not_answer() {
    let (client, client_side) = pair().await;
    let (upstream_side, upstream) = pair().await;
    let (sender, mut commands) = tokio::sync::mpsc::unbounded_channel();
    let before = TcpOptions { keepalive_idle: Duration::from_secs(77), ..TcpOptions::default() };
    before.keep_alive(&upstream_side).unwrap();
    let upstream_socket = SockRef::from(&upstream_side).try_clone().unwrap();
    let relay = tokio::spawn(async move {
        let command =
            |cx: &mut Context<'_>| commands.poll_recv(cx).map(|command| command.unwrap_or(RelayCommand::Stop));
        let hello = b"hello".to_vec();
        ended(copy_bidirectional(&client_side, &upstream_side, Start::Hello(hello), &SETTINGS, (command, ignore)).await)
    });
    upstream.readable().await.unwrap();
    while upstream_socket.tcp_keepalive_time().unwrap() != Duration::from_secs(1) {
        sender.send(RelayCommand::Probe(Instant::now())).unwrap();
        sleep(Duration::from_millis(1)).await;
    }
    while upstream_socket.tcp_keepalive_time().unwrap() != before.keepalive_idle {
        assert!(!relay.is_finished(), "the upstream's kernel has answered");
        sleep(Duration::from_millis(20)).await;
    }
    // No packet arrives any more.
    SockRef::from(&upstream).attach_filter(&[socket2::SockFilter::new(0x06, 0, 0, 0)]).unwrap();
    let since = Instant::now();
    sleep(Duration::from_millis(10)).await;
    sender.send(RelayCommand::Probe(since)).unwrap();
    assert_eq!(relay.await.unwrap(), RelayEnd::ProbeUnanswered);
    drop(client);
}

/// The kernel sends no keepalives while the window is closed, and its window probes are far apart.
#[tokio::test]
async fn b08_a_probe_spares_a_peer_that_does_not_read() {
    let (client, client_side) = pair().await;
    let (upstream_side, upstream) = pair().await;
    let (sender, mut commands) = tokio::sync::mpsc::unbounded_channel();
    let upstream_socket = SockRef::from(&upstream_side).try_clone().unwrap();
    let mut relay = tokio::spawn(async move {
        let command =
            |cx: &mut Context<'_>| commands.poll_recv(cx).map(|command| command.unwrap_or(RelayCommand::Stop));
        ended(
            copy_bidirectional(&client_side, &upstream_side, Start::Hello(Vec::new()), &SETTINGS, (command, ignore))
                .await,
        )
    });
    while tokio::time::timeout(Duration::from_millis(200), client.writable()).await.is_ok() {
        let _ = client.try_write(&[0; 16384]);
    }
    // Wait until window probes are further apart than a liveness probe takes.
    let is_quiet = || sys::tcp_info(&upstream_socket).unwrap().last_heard > Duration::from_secs(3);
    while !is_quiet() {
        sleep(Duration::from_millis(50)).await;
    }
    SockRef::from(&upstream).attach_filter(&[socket2::SockFilter::new(0x06, 0, 0, 0)]).unwrap();
    sender.send(RelayCommand::Probe(Instant::now())).unwrap();
    assert!(tokio::time::timeout(PROBE_TIME * 2, &mut relay).await.is_err(), "only other deadlines may end it");
    drop((client, sender));
    relay.abort();
}

#[tokio::test(start_paused = true)]
async fn d15_a_silent_connection_lives_until_the_idle_deadline() {
    let Relayed { client, upstream, relay } = relayed(b"", SETTINGS).await;
    let start = Instant::now();
    assert_eq!(relay.await.unwrap().0, RelayEnd::IdleTimeout);
    let lived = start.elapsed();
    assert!(lived >= 24 * HOUR && lived < 24 * HOUR + Duration::from_secs(1), "{lived:?}");
    assert!(read_all(client).await.1.is_ok() && read_all(upstream).await.1.is_ok(), "closed in order");
}

#[tokio::test(start_paused = true)]
async fn d14_activity_in_one_direction_keeps_the_connection() {
    let settings = RelaySettings { idle: HOUR, ..SETTINGS };
    let Relayed { mut client, mut upstream, relay } = relayed(b"", settings).await;
    for _ in 0..30 {
        sleep(HOUR / 2).await;
        upstream.write_all(b"x").await.unwrap();
        client.read_exact(&mut [0]).await.unwrap();
    }
    let last = Instant::now();
    assert_eq!(relay.await.unwrap().0, RelayEnd::IdleTimeout);
    assert!(last.elapsed() >= HOUR && last.elapsed() < HOUR + Duration::from_secs(1), "{:?}", last.elapsed());
}

#[tokio::test(start_paused = true)]
async fn d16_a_half_closed_connection_has_its_own_deadline_of_inactivity() {
    let Relayed { mut client, mut upstream, relay } = relayed(b"", SETTINGS).await;
    client.shutdown().await.unwrap();
    assert_eq!(upstream.read(&mut [0]).await.unwrap(), 0);
    for _ in 0..5 {
        sleep(Duration::from_secs(59)).await;
        upstream.write_all(b"x").await.unwrap();
        client.read_exact(&mut [0]).await.unwrap();
    }
    let last = Instant::now();
    assert_eq!(relay.await.unwrap().0, RelayEnd::HalfCloseTimeout);
    assert!(last.elapsed() >= Duration::from_secs(60) && last.elapsed() < Duration::from_secs(61));
}

#[tokio::test(start_paused = true)]
async fn d06_who_reads_late_gets_what_came_before_a_reset_and_then_the_reset() {
    for engine in ENGINES {
        let Relayed { mut client, mut upstream, relay } = relayed_by(engine, b"", SETTINGS).await;
        let block = pattern(100_000);
        while tokio::time::timeout(Duration::from_secs(1), upstream.write_all(&block)).await.is_ok() {}
        upstream.set_zero_linger().unwrap();
        drop(upstream);
        // A write tells of the reset, while the other direction waits for the client.
        client.write_all(b"x").await.unwrap();
        sleep(2 * SETTINGS.half_close).await;
        assert!(!relay.is_finished(), "{engine:?}");
        let mut received = Vec::new();
        let end = client.read_to_end(&mut received).await.unwrap_err();
        assert_eq!(end.kind(), io::ErrorKind::ConnectionReset, "{engine:?}");
        assert!(received.chunks(block.len()).all(|part| block.starts_with(part)));
        let (end, [_, down]) = relay.await.unwrap();
        assert_eq!((end, down), (RelayEnd::Reset(Side::Upstream), received.len()), "{engine:?}");
    }
}

#[tokio::test]
async fn d09_single_bytes_both_ways() {
    for engine in ENGINES {
        let Relayed { mut client, mut upstream, relay } = relayed_by(engine, b"", SETTINGS).await;
        let bytes = pattern(20_000);
        let one_by_one = async |writer: &mut tokio::net::tcp::WriteHalf<'_>| {
            for byte in &bytes {
                writer.write_all(&[*byte]).await.unwrap();
            }
            writer.shutdown().await.unwrap();
        };
        let (mut client_reader, mut client_writer) = client.split();
        let (mut upstream_reader, mut upstream_writer) = upstream.split();
        let ((), (), up, down) = tokio::join!(
            one_by_one(&mut client_writer),
            one_by_one(&mut upstream_writer),
            read_all(&mut upstream_reader),
            read_all(&mut client_reader),
        );
        assert!(up.0 == bytes && down.0 == bytes);
        assert_eq!(relay.await.unwrap().1, [20_000, 20_000]);
    }
}

#[tokio::test]
async fn d07_a_stalled_reader_bounds_what_is_read_from_the_other_side() {
    let Relayed { client, mut upstream, relay } = relayed(b"", SETTINGS).await;
    let mut taken = 0;
    loop {
        tokio::select! {
            written = upstream.write(&[0; 16384]) => taken += written.unwrap(),
            () = sleep(Duration::from_millis(300)) => break,
        }
    }
    assert!(taken < 32_000_000, "socket buffers and one chunk, not {taken} bytes");
    assert!(!relay.is_finished());
    drop(client);
}

#[tokio::test]
async fn stop_ends_a_relay() {
    let (client, client_side) = pair().await;
    let (upstream_side, upstream) = pair().await;
    let end =
        relay_and_close(client_side, upstream_side, Vec::new(), SETTINGS, std::future::ready(()), |_, _| {}).await;
    assert_eq!(end, RelayEnd::Stopped);
    assert!(read_all(client).await.1.is_ok() && read_all(upstream).await.1.is_ok());
}

/// Both sides write pieces of these sizes and close. Returns what each received.
async fn exchange(up: &[usize], down: &[usize], engine: Option<Engine>) -> [Vec<u8>; 2] {
    let (client, mut client_side) = pair().await;
    let (mut upstream_side, upstream) = pair().await;
    let relay = tokio::spawn(async move {
        if let Some(engine) = engine {
            let settings = RelaySettings { engine, ..SETTINGS };
            relay_and_close(client_side, upstream_side, Vec::new(), settings, std::future::pending(), |_, _| {}).await;
        } else {
            tokio::io::copy_bidirectional(&mut client_side, &mut upstream_side).await.unwrap();
        }
    });
    let side = async |stream: TcpStream, pieces: &[usize]| {
        let (reader, mut writer) = stream.into_split();
        let reader = tokio::spawn(read_all(reader));
        for (number, piece) in pieces.iter().enumerate() {
            writer.write_all(&vec![u8::try_from(number).unwrap(); *piece]).await.unwrap();
        }
        writer.shutdown().await.unwrap();
        reader.await.unwrap().0
    };
    let (from_upstream, from_client) = tokio::join!(side(client, up), side(upstream, down));
    relay.await.unwrap();
    [from_client, from_upstream]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn d11_delivers_what_tokio_delivers(
        up in vec(0usize..200_000, 0..20),
        down in vec(0usize..200_000, 0..20),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let theirs = exchange(&up, &down, None).await;
            for engine in ENGINES {
                prop_assert!(exchange(&up, &down, Some(engine)).await == theirs, "{engine:?}");
            }
            Ok(())
        })?;
    }
}
