//! Clients that take what they can: stalled hellos, readers that do not read, more than there is room for.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, prlimit, setrlimit};

use crate::support::backend::{black_hole, free};
use crate::support::client::{End, alert};
use crate::support::router::config;
use crate::support::{Backend, Client, Hello, Process, Router, eventually, pattern, watchdog};

const NAME: &str = "a.example";
const OVER_LIMIT: u8 = 80;

fn serves(address: SocketAddr) -> bool {
    let mut client = Client::send(address, &Hello::to(NAME).record());
    client.finish_if_open();
    client.rest().0 == b"served"
}

/// With `SNIGATE_STALLED` as many stalled clients as that.
#[test]
fn a16_f09_z9_stalled_hellos_leave_room_for_everybody_else() {
    let stalled = std::env::var("SNIGATE_STALLED").map_or(1000, |number| number.parse().unwrap());
    watchdog::may_take(Duration::from_secs(300 + u64::try_from(stalled).unwrap() / 20));
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
    let backend = Backend::named("served");
    let connections = (stalled * 2 / 5).min(9000);
    let more = format!("limits: {{connections: {connections}}}\nlog: {{refusals_per_second: 10}}\n");
    let router = Router::start(&config(&[(NAME, backend.address())], &more));
    let before = router.memory();
    let begun = Instant::now();
    let mut clients = Vec::new();
    let mut slowest = Duration::ZERO;
    let mut served = 0;
    for number in 0..stalled {
        // All of them begin a hello, half of them a large one.
        let hello = Hello::to(NAME).padded_to(if number % 2 == 0 { 600 } else { 12_000 }).record();
        let mut client = Client::connect(router.address());
        let _ = client.stream.write_all(&hello[..hello.len() - 1]);
        clients.push(client);
        if number % 20 == 0 {
            let asked = Instant::now();
            assert!(serves(router.address()), "after {number}");
            (served, slowest) = (served + 1, slowest.max(asked.elapsed()));
        }
    }
    let active = router.metric("snigate_connections_active{route=\"_none\"}");
    assert!(active <= f64::from(connections), "{active}");
    let growth = router.memory() - before;
    eprintln!(
        "{stalled} stalled, {served} of {served} others served, the slowest in {slowest:?}, within {:?}; {growth} bytes more",
        begun.elapsed()
    );
    assert!(growth < f64::from(connections) * 40_000.0, "{growth}");
    let shed = router.wait("who made room", |line| line["outcome"] == "over_limit");
    assert_eq!(shed["reason"], "shed at limits.connections: oldest connection without ClientHello");
    // Those that came last still wait.
    let mut last = clients.pop().unwrap();
    last.stream.set_nonblocking(true).unwrap();
    assert_eq!(last.stream.read(&mut [0]).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    assert_eq!(clients[0].rest().1, End::Reset, "and those that came first do not");
}

#[test]
fn f10_what_waits_for_the_rest_of_a_hello_is_bounded() {
    let backend = Backend::named("served");
    let more = "limits: {buffer_bytes: 1MiB}\ntimeouts: {hello: 60s}\nlog: {refusals_per_second: 0}\n";
    let router = Router::start(&config(&[(NAME, backend.address())], more));
    assert_eq!(router.metric("snigate_buffered_bytes_limit"), f64::from(1 << 20));
    let hello = Hello::to(NAME).padded_to(15_000).record();
    let clients: Vec<Client> = (0..200).map(|_| Client::send(router.address(), &hello[..hello.len() - 1])).collect();
    let refused = "snigate_connections_total{listener=\"127.0.0.1:0\",route=\"_none\",outcome=\"over_limit\"}";
    let waiting = || router.metric("snigate_connections_active{route=\"_none\"}");
    eventually("those for whom there is no room are refused", || {
        let refused = router.metric(refused);
        refused > 100.0 && refused + waiting() == 200.0
    });
    let held = router.metric("snigate_buffered_bytes");
    assert!(held > 900_000.0 && held <= f64::from(1 << 20), "{held}");
    let account = router.wait("why", |line| line["outcome"] == "over_limit");
    assert_eq!(account["reason"], "limits.buffer_bytes is reached: no memory for a large ClientHello");
    // These need not be the last to come: each thread accepts some, and begins with any of them.
    let ports: Vec<_> = router.log().iter().filter_map(|line| line["client.port"].as_u64()).collect();
    let is_refused = |client: &Client| ports.contains(&client.address().port().into());
    let (mut refused, mut held): (Vec<_>, Vec<_>) = clients.into_iter().partition(is_refused);
    assert_eq!(refused[0].rest().0, alert(OVER_LIMIT));
    // Hellos as clients send them have room, also in two segments.
    let hello = Hello::to(NAME).padded_to(1900).record();
    let before = waiting();
    for _ in 0..20 {
        let mut client = Client::send(router.address(), &hello[..1400]);
        eventually("the first segment is read", || waiting() > before);
        client.write(&hello[1400..]);
        client.finish();
        assert_eq!(client.rest().0, b"served");
    }
    // Those that are held are still welcome.
    let rest = &hello_tail();
    held[0].write(rest);
    held[0].finish();
    assert_eq!(held[0].rest().0, b"served");
    drop(held);
    eventually("all is given back", || router.metric("snigate_buffered_bytes") == 0.0);
}

/// The last byte of the hello above: of its padding.
fn hello_tail() -> [u8; 1] {
    [*Hello::to(NAME).padded_to(15_000).record().last().unwrap()]
}

#[test]
fn f10_whole_hellos_count_for_as_long_as_an_endpoint_is_dialled() {
    let (_listener, nowhere) = black_hole();
    let more = "limits: {buffer_bytes: 1MiB}\nlog: {refusals_per_second: 0}\n";
    let router = Router::start(&config(&[(NAME, nowhere)], more));
    let hello = Hello::to(NAME).padded_to(15_000).record();
    let clients: Vec<Client> = (0..200).map(|_| Client::send(router.address(), &hello)).collect();
    router.wait_many("those for whom there is no room", 100, |line| line["outcome"] == "over_limit");
    assert!(router.metric("snigate_buffered_bytes") <= f64::from(1 << 20));
    drop(clients);
    eventually("all is given back", || router.metric("snigate_buffered_bytes") == 0.0);
}

#[test]
fn d07_readers_that_do_not_read_are_bounded_together_and_cost_nobody_a_stream() {
    const SIZE: usize = 16 << 20;
    const STALLED: usize = 60;
    let bytes = pattern(SIZE);
    let sent = bytes.clone();
    let backend = Backend::start(move |mut stream| {
        let _ = stream.read(&mut [0; 65536]);
        let _ = stream.write_all(&sent);
    });
    let router = Router::start(&config(&[(NAME, backend.address())], "relay: copy\nlimits: {buffer_bytes: 1MiB}\n"));
    let hello = Hello::to(NAME).record();
    let held = || router.metric("snigate_buffered_bytes");
    let slowly = || {
        let mut client = Client::connect(router.address());
        socket2::SockRef::from(&client.stream).set_recv_buffer_size(128 * 1024).unwrap();
        client.write(&hello);
        client
    };
    let mut first = slowly();
    eventually("it is held for", || held() > 0.0);
    let others: Vec<Client> = (0..STALLED).map(|_| slowly()).collect();
    eventually("much is held", || held() > 300_000.0);
    let mut last = slowly();
    // A small read more for each of those that came too late.
    let most = f64::from(1 << 20) + (STALLED * 4096) as f64 + 65536.0;
    assert!(held() <= most, "{}", held());
    for client in [&mut first, &mut last] {
        let mut received = Vec::with_capacity(SIZE);
        while received.len() < SIZE {
            received.extend(client.read(8192));
            // No faster than the backend sends, so that something is held all the time.
            if received.len() % (1 << 20) == 0 {
                assert!(held() <= most, "{}", held());
            }
        }
        assert!(received == bytes, "whenever it came, it loses nothing");
    }
    drop(others);
    drop((first, last));
    eventually("all is given back", || held() == 0.0);
    assert!(!router.log().iter().any(|line| line["outcome"] == "over_limit"));
}

fn limit_descriptors(router: &Router, limit: u64) {
    let maximum = getrlimit(Resource::Nofile).maximum;
    prlimit(Some(router.pid()), Resource::Nofile, Rlimit { current: Some(limit), maximum }).unwrap();
}

/// The kernel has no descriptor for us, and later it has: how long until a client is served is printed.
#[test]
fn z4_f03_descriptors_that_run_out_and_come_back() {
    let backend = Backend::named("served");
    let router = Router::routing(&[(NAME, backend.address())]);
    assert!(serves(router.address()));
    let set = |limit| limit_descriptors(&router, limit);
    let before = router.descriptors();
    let mut recoveries = Vec::new();
    for _ in 0..10 {
        set(4);
        // Accepted by the kernel only.
        let waiting: Vec<Client> = (0..20).map(|_| Client::send(router.address(), &Hello::to(NAME).record())).collect();
        router.wait("that it cannot", |line| line["message"] == "accept failed; retrying");
        let cpu = |pid: Pid| {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap();
            let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
            fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
        };
        let spent = cpu(router.pid());
        std::thread::sleep(Duration::from_millis(200));
        assert!(cpu(router.pid()) - spent <= 5, "it does not spin: ticks of 10 ms in 200 ms");
        let raised = Instant::now();
        set(10_000);
        let mut first = waiting.into_iter().next().unwrap();
        first.finish_if_open();
        assert_eq!(first.rest().0, b"served");
        recoveries.push(raised.elapsed());
        assert!(serves(router.address()));
    }
    recoveries.sort();
    eprintln!("served again after {:?} (median), {:?} (most)", recoveries[5], recoveries[9]);
    eventually("no descriptor is lost", || router.descriptors() <= before + 2);
    assert!(router.metric("snigate_accept_errors_total{error=\"EMFILE\"}") >= 10.0);
    let told = router.log().iter().filter(|line| line["message"] == "accept failed; retrying").count();
    assert!(told <= 20, "once a second at most: {told}");
}

#[test]
fn f03_a_connection_that_ends_makes_room_for_another() {
    let backend = Backend::echo();
    let text = config(&[(NAME, backend.address())], "");
    let router = Router::start(&text);
    let (hello, mut open) = without_descriptors(&router, &text);
    let before = router.descriptors();
    let mut waiting = Client::connect(router.address());
    router.wait("that it cannot", |line| line["message"] == "accept failed; retrying");
    // One would do if both of its descriptors were closed at the same time.
    open.drain(..2);
    eventually("there are two descriptors", || router.descriptors() <= before - 2);
    waiting.write(&hello);
    assert_eq!(waiting.read(hello.len()), hello);
}

/// Ten connections of a router with this configuration, which has no descriptor for another then, and their hello.
fn without_descriptors(router: &Router, text: &str) -> (Vec<u8>, Vec<Client>) {
    // Once it reloads, it has closed what it had needed for its start.
    router.reload(text);
    let hello = Hello::to(NAME).record();
    let mut open: Vec<Client> = (0..10).map(|_| Client::send(router.address(), &hello)).collect();
    for client in &mut open {
        assert_eq!(client.read(hello.len()), hello);
    }
    // A new descriptor has the lowest number that is free, so those of the first connection are below the limit.
    let is_free =
        |number: &u64| !std::fs::exists(format!("/proc/{}/fd/{number}", router.pid().as_raw_nonzero())).unwrap();
    limit_descriptors(router, (0..).find(is_free).unwrap());
    (hello, open)
}

#[test]
fn f03_h04_the_queue_of_a_stopped_process_waits_for_descriptors() {
    let backend = Backend::echo();
    let text = config(&[(NAME, backend.address())], "");
    let router = Router::start(&text);
    let (hello, mut open) = without_descriptors(&router, &text);
    let before = router.descriptors();
    let mut waiting: Vec<Client> = (0..5).map(|_| Client::connect(router.address())).collect();
    router.wait("that it cannot", |line| line["message"] == "accept failed; retrying");
    router.signal(Signal::TERM);
    router.wait("that it stops", |line| line["message"].as_str().is_some_and(|told| told.starts_with("shutting down")));
    open.clear();
    eventually("there are descriptors for endpoints", || router.descriptors() <= before - 10);
    for client in &mut waiting {
        client.write(&hello);
        assert_eq!(client.read(hello.len()), hello);
    }
}

#[test]
fn f07_connects_that_are_reset_leave_nothing() {
    let backend = Backend::named("served");
    let router = Router::routing(&[(NAME, backend.address())]);
    let hello = Hello::to(NAME).record();
    for number in 0..3000 {
        let client = Client::connect(router.address());
        let socket = socket2::SockRef::from(&client.stream);
        socket.set_linger(Some(Duration::ZERO)).unwrap();
        if number % 3 > 0 {
            let _ = (&client.stream).write_all(&hello[..hello.len() - number % 2]);
        }
    }
    assert!(serves(router.address()));
    eventually("all have gone", || {
        router.metric("snigate_connections_active{route=\"_none\"}") == 0.0
            && router.metric("snigate_connections_active{route=\"a.example\"}") == 0.0
    });
    assert!(router.log().iter().all(|line| line["level"] != "WARN" && line["level"] != "ERROR"), "{:?}", router.log());
}

#[test]
fn b16_two_instances_that_lead_to_each_other_are_bounded() {
    let config = |listen: &str, upstream: &str| {
        format!(
            "listen: {listen}\nadmin: 127.0.0.1:0\nlimits: {{per_source: 20}}\nroutes:\n  - {{sni: {NAME}, upstream: \"{upstream}\"}}\n"
        )
    };
    let [one, other] = [free(), free()].map(|address| address.to_string());
    let (first, second) = (Router::start(&config(&one, &other)), Router::start(&config(&other, &one)));
    for _ in 0..5 {
        let mut client = Client::send(first.address(), &Hello::to(NAME).record());
        // From the last in the circle, by way of all others.
        assert_eq!(client.rest().0, alert(OVER_LIMIT));
    }
    for router in [&first, &second] {
        eventually("all have ended", || router.metric("snigate_connections_active{route=\"a.example\"}") == 0.0);
        let ended: f64 = ["completed", "over_limit", "client_reset", "upstream_reset"]
            .iter()
            .map(|outcome| {
                let listener = router.address();
                let route = |route: &str| {
                    router.metric(&format!(
                        "snigate_connections_total{{listener=\"{listener}\",route=\"{route}\",outcome=\"{outcome}\"}}"
                    ))
                };
                route(NAME) + if *outcome == "over_limit" { route("_none") } else { 0.0 }
            })
            .sum();
        assert!(ended <= 5.0 * 22.0, "{ended}");
    }
}

#[test]
fn f13_a_log_that_cannot_be_written_stops_nothing() {
    let backend = Backend::named("served");
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("snigate.yaml");
    let address = free();
    let text = config(&[(NAME, backend.address())], "").replace("listen: 127.0.0.1:0", &format!("listen: {address}"));
    std::fs::write(&path, text).unwrap();
    // A disk that is full, and nothing at all.
    for redirection in ["2>/dev/full", "2>&-"] {
        let mut command = Command::new("sh");
        let run = format!("exec {} run -c {} {redirection}", env!("CARGO_BIN_EXE_snigate"), path.display());
        let mut router = Process(command.args(["-c", &run]).spawn().unwrap());
        eventually("it listens", || std::net::TcpStream::connect(address).is_ok());
        for _ in 0..20 {
            assert!(serves(address), "{redirection}");
        }
        router.signal(Signal::TERM);
        assert_eq!(router.exit().code(), Some(0), "{redirection}");
    }
}

/// Takes all it can get of a CPU, but not for long.
fn busy() -> Process {
    let mut command = Command::new("taskset");
    Process(command.args(["-c", "0", "sh", "-c", "ulimit -t 120; while :; do :; done"]).spawn().unwrap())
}

#[test]
#[ignore = "needs taskset and nice"]
fn f14_without_much_of_a_cpu_it_is_slow_and_right() {
    let _neighbours = [busy(), busy()];
    let backend = Backend::echo();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("snigate.yaml");
    std::fs::write(&path, config(&[(NAME, backend.address())], "timeouts: {hello: 1s, drain: 500ms}\n")).unwrap();
    let mut command = Command::new("taskset");
    command.args(["-c", "0", "nice", "-n", "10", env!("CARGO_BIN_EXE_snigate"), "run", "-c"]).arg(&path);
    let mut router = Router::spawn(command, path, directory);
    router.wait("that it listens", |line| line["listener"] == "_admin");
    let bytes = [Hello::to(NAME).record(), pattern(200_000)].concat();
    let begun = Instant::now();
    let mut silent = Client::connect(router.address());
    let mut clients: Vec<Client> = (0..20).map(|_| Client::connect(router.address())).collect();
    for client in &mut clients {
        let (mut writer, bytes) = (client.stream.try_clone().unwrap(), bytes.clone());
        std::thread::spawn(move || writer.write_all(&bytes).unwrap());
    }
    for client in &mut clients {
        assert!(client.read(bytes.len()) == bytes);
    }
    silent.rest();
    assert!(begun.elapsed() >= Duration::from_secs(1));
    assert_eq!(router.account_of(silent.address())["outcome"], "hello_timeout");
    router.signal(Signal::TERM);
    assert_eq!(router.exit().code(), Some(0));
    let drained = router.log().iter().filter(|line| line["outcome"] == "drained").count();
    assert_eq!(drained, clients.len(), "they were still there");
}

/// As a user that nobody else is: what it may have is for snigate alone.
fn as_nobody_else() -> Command {
    let user = 100_000 + std::process::id();
    let mut command = Command::new("setpriv");
    command.args([format!("--reuid={user}"), format!("--regid={user}"), "--clear-groups".into()]);
    command
}

#[test]
#[ignore = "needs root, setpriv and prlimit"]
fn f12_where_no_thread_can_be_made_it_does_not_start_or_goes_on_as_it_was() {
    for workers in [1, 2] {
        let mut refusals = 0;
        for threads in 1.. {
            let backend = Backend::named("served");
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("snigate.yaml");
            let more = format!("  - {{sni: b.example, upstream: \"localhost:1\"}}\nworkers: {workers}\nwatch: true\n");
            std::fs::write(&path, config(&[(NAME, backend.address())], &more)).unwrap();
            std::fs::set_permissions(directory.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
            let binary = std::fs::File::open(env!("CARGO_BIN_EXE_snigate")).unwrap();
            let mut command = as_nobody_else();
            // It may not go where the binary is.
            command.args(["prlimit", &format!("--nproc={threads}:1000"), "/proc/self/fd/0", "run", "-c"]);
            command.arg(&path).stdin(binary).env_remove("RUST_LOG");
            let mut router = Router::spawn(command, path, directory);
            let case = format!("{workers} workers, {threads} threads");
            assert!(threads < 100, "{case}");
            let begins = router.wait_line(&case, |line| line.starts_with("snigate: ") || line.contains("\"_admin\""));
            if begins.starts_with("snigate: ") {
                assert!(begins.contains("cannot create threads"), "{begins}");
                assert_eq!(router.exit().code(), Some(1), "{case}");
                refusals += 1;
                continue;
            }
            let allow = |threads: u32| {
                let mut command = as_nobody_else();
                command.args(["prlimit", "--pid", &router.pid().to_string()]);
                assert!(command.arg(format!("--nproc={threads}:1000")).status().unwrap().success());
            };
            allow(1);
            assert!(serves(router.address()), "{case}");
            let told = router.reload_as_it_is();
            assert_eq!(told["message"], "reloaded", "{case}: {told}");
            assert!(serves(router.address()), "{case}");
            allow(100);
            let told = router.reload_as_it_is();
            assert_eq!(told["message"], "reloaded", "{case}: {told}");
            router.signal(Signal::TERM);
            assert_eq!(router.exit().code(), Some(0), "{case}");
            assert!(!router.log().iter().any(|line| line["message"] == "panicked"), "{case}: {:?}", router.log());
            break;
        }
        assert!(refusals > 1, "{refusals}");
    }
}
