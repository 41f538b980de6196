//! What many routes cost: start, memory, CPU time while idle, reload and scrape, and what a message waits meanwhile.
//!
//! Every tenth endpoint refuses, and each route has one endpoint, which is checked every 5 s. HAProxy has a backend for
//! each route, a map file of names, and its exporter for Prometheus.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use clap::Args;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Builder;
use tokio::task::{JoinSet, block_in_place};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::Common;
use crate::hello::Hello;
use crate::load::{Client, Order, PATIENCE, backend_at, ping, within};
use crate::proxy::{Fleet, Program, Proxy, Setup};
use crate::report::{line, percentile};

#[derive(Args)]
pub struct Options {
    #[arg(long, default_value_t = 10_000)]
    routes: usize,
    /// Endpoints that the routes share, at most 65,000
    #[arg(long, default_value_t = 1000)]
    endpoints: usize,
    /// Scrapes, and reloads of a file with a hundredth of the names changed
    #[arg(long, default_value_t = 5)]
    times: usize,
}

pub fn run(options: Options, common: &Common) {
    let options = if common.quick { Options { routes: 1000, endpoints: 100, times: 2 } } else { options };
    let programs = Program::with_health_checks(&common.against);
    Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap().block_on(async {
        let Options { routes, endpoints, times } = options;
        println!(
            "{routes} routes, {endpoints} endpoints, {} of them refuse; {times} reloads and scrapes: median, most",
            endpoints / 10
        );
        for program in &programs {
            measure(program, &options).await;
        }
    });
}

async fn measure(program: &Program, options: &Options) {
    let any: SocketAddr = (Ipv4Addr::UNSPECIFIED, 0).into();
    let alive = backend_at(any).await.port();
    // Bound and closed again: this port refuses.
    let dead = TcpListener::bind(any).await.unwrap().local_addr().unwrap().port();
    let endpoint = |number: usize| {
        let [.., high, low] = number.to_be_bytes();
        SocketAddr::from(([127, 1, high, low], if number % 10 == 9 { dead } else { alive }))
    };
    let routes = |version: usize| {
        let name = move |number: usize| {
            let is_changed = version > 0 && number % 100 == version % 100;
            if is_changed { format!("v{version}-{number}.example.com") } else { format!("n{number}.example.com") }
        };
        (0..options.routes).map(|number| (name(number), endpoint(number % options.endpoints))).collect::<Vec<_>>()
    };
    let admin = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let fleet = Fleet { routes: routes(0), admin };
    let setup = Setup { connections: Some(2000), fleet: Some(fleet), ..Setup::new([([127, 0, 0, 1], alive).into()]) };
    let begun = Instant::now();
    let mut proxy = block_in_place(|| Proxy::start(program, setup));
    let name = program.name();
    line(&name, format!("start to the first accept: {:.2} s", begun.elapsed().as_secs_f64()));

    // Until every endpoint has been checked more than once.
    sleep(Duration::from_secs(12)).await;
    let (cpu, begun) = (proxy.cpu(), Instant::now());
    sleep(Duration::from_secs(10)).await;
    let share = (proxy.cpu() - cpu).as_secs_f64() / begun.elapsed().as_secs_f64() * 100.0;
    line("", format!("idle: {} kB of memory, {share:.2} % of a CPU", proxy.memory() / 1024));

    let (stop, longest) = (CancellationToken::new(), Arc::new(AtomicUsize::new(0)));
    let pings = tokio::spawn(ping(proxy.address, stop.clone(), Arc::clone(&longest)));
    let waited = || longest.swap(0, Relaxed) as f64 / 1e3;
    sleep(Duration::from_secs(2)).await;
    line("", format!("1 kB there and back while nothing happens: {:.1} ms at most", waited()));
    scrapes("scrape, idle routes", admin, options).await;
    line("", format!("1 kB there and back meanwhile: {:.1} ms at most", waited()));

    let mut took = Vec::new();
    for version in 1..=options.times {
        let changed = routes(version);
        let name = changed[version].0.clone();
        proxy.setup.fleet.as_mut().unwrap().routes = changed;
        proxy.configure([]);
        sleep(Duration::from_millis(500)).await;
        waited();
        let begun = Instant::now();
        proxy.reload();
        while client(proxy.address, &name).open().await.is_err() {
            assert!(begun.elapsed() < PATIENCE, "the reload changes nothing");
            sleep(Duration::from_millis(5)).await;
        }
        took.push(begun.elapsed());
    }
    let [median, most] = [50, 100].map(|percent| percentile(&took, percent));
    line("", format!("reload until a new name is served: {median:.0} ms, {most:.0} ms"));
    line("", format!("1 kB there and back during the last: {:.1} ms at most", waited()));
    // HAProxy's worker from before a reload ends with its last connection.
    stop.cancel();
    pings.await.unwrap();
    sleep(Duration::from_secs(2)).await;
    line("", format!("after the reloads: {} kB of memory", proxy.memory() / 1024));

    let (stop, longest) = (CancellationToken::new(), Arc::new(AtomicUsize::new(0)));
    let pings = tokio::spawn(ping(proxy.address, stop.clone(), Arc::clone(&longest)));
    let names: Vec<_> = routes(options.times).into_iter().filter(|(_, endpoint)| endpoint.port() == alive).collect();
    let (count, mut failed) = (names.len(), 0);
    for some in names.chunks(64) {
        let attempts: JoinSet<_> = some.iter().map(|(name, _)| client(proxy.address, name).attempt()).collect();
        failed += attempts.join_all().await.iter().filter(|attempt| attempt.result.is_err()).count();
    }
    line("", format!("one connection for each of {count} routes: {failed} failed"));
    longest.store(0, Relaxed);
    scrapes("scrape, busy routes", admin, options).await;
    let waited = longest.swap(0, Relaxed) as f64 / 1e3;
    line("", format!("1 kB there and back meanwhile: {waited:.1} ms at most"));
    line("", format!("then: {} kB of memory", proxy.memory() / 1024));
    stop.cancel();
    pings.await.unwrap();
}

fn client(proxy: SocketAddr, name: &str) -> Client {
    let hello = Hello::to(name).padded_to(517).record();
    Client { request: Order::Send(crate::load::ANSWER).after(&hello).into(), ..Client::new(proxy) }
}

async fn scrapes(what: &str, admin: SocketAddr, options: &Options) {
    let (mut first, mut whole, mut size) = (Vec::new(), Vec::new(), 0);
    for _ in 0..options.times {
        // Longer than one answer is shared by several scrapers.
        sleep(Duration::from_millis(1500)).await;
        let begun = Instant::now();
        let mut stream = TcpStream::connect(admin).await.unwrap();
        stream.write_all(b"GET /metrics HTTP/1.0\r\nHost: localhost\r\n\r\n").await.unwrap();
        let mut answer = Vec::new();
        within(PATIENCE, "a scrape", stream.read_buf(&mut answer)).await.unwrap();
        first.push(begun.elapsed());
        timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("the end of a scrape").unwrap();
        whole.push(begun.elapsed());
        size = answer.len();
        assert!(answer.starts_with(b"HTTP/1.1 200") || answer.starts_with(b"HTTP/1.0 200"), "a scrape is refused");
    }
    let [first, whole] = [first, whole].map(|took| [50, 100].map(|percent| percentile(&took, percent)));
    line(
        "",
        format!(
            "{what}: first byte {:.0} ms, {:.0} ms; whole {:.0} ms, {:.0} ms; {size} B, {} B a route",
            first[0],
            first[1],
            whole[0],
            whole[1],
            size / options.routes
        ),
    );
}
