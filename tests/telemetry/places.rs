//! Who gets a place at the admin listener: probes always.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use crate::support::router::config;
use crate::support::{Backend, Client, Hello, Router};

const NAME: &str = "a.example";

/// As a kubelet does it; how long the answer took.
fn probe(router: &Router) -> Duration {
    let begun = Instant::now();
    assert_eq!(router.get("/livez"), (200, "ok\n".into()));
    begun.elapsed()
}

/// The first probe that is too late would be the first of those after which a pod is restarted.
fn probes_are_answered(router: &Router, count: usize, what: &str) {
    for number in 0..count {
        let took = probe(router);
        assert!(took < Duration::from_secs(1), "{what}: probe {number} took {took:?}");
    }
}

fn routers(count: usize) -> Router {
    let backend = Backend::named("served");
    let names: Vec<String> = (0..count).map(|number| format!("cluster{number:05}.region.example.test")).collect();
    let routes: Vec<_> = names.iter().map(|name| (name.as_str(), backend.address())).collect();
    Router::start(&config(&routes, ""))
}

#[test]
fn e13_idle_admin_connections_make_room_for_probes() {
    let router = Router::routing(&[(NAME, Backend::named("served").address())]);
    for (what, request) in [
        ("silent", &b""[..]),
        ("in the middle of a request", b"GET /metrics HTTP/1.1\r\nx: "),
        ("kept alive", b"GET /metrics HTTP/1.1\r\nhost: localhost\r\n\r\n"),
        ("looking at the page", b"GET /api/events HTTP/1.1\r\nhost: localhost\r\n\r\n"),
    ] {
        let clients: Vec<Client> = (0..200).map(|_| Client::send(router.admin(), request)).collect();
        probes_are_answered(&router, 10, what);
        drop(clients);
    }
}

#[test]
fn e13_clients_that_come_again_and_again_do_not_keep_probes_out() {
    let router = Router::routing(&[(NAME, Backend::named("served").address())]);
    let squat = |stop: &AtomicBool, admin: SocketAddr| {
        while !stop.load(Relaxed) {
            let Ok(mut stream) = TcpStream::connect(admin) else { continue };
            let _ = stream.set_read_timeout(Some(Duration::from_secs(1)));
            while !stop.load(Relaxed) && stream.read(&mut [0]).is_ok_and(|length| length > 0) {}
        }
    };
    keep_no_probe_out(&router, squat);
}

/// Those that ask again on the same connection as soon as they have an answer.
#[test]
fn e13_clients_that_never_pause_do_not_keep_probes_out() {
    let router = Router::routing(&[(NAME, Backend::named("served").address())]);
    keep_no_probe_out(&router, |stop, admin| {
        while !stop.load(Relaxed) {
            let Ok(mut stream) = TcpStream::connect(admin) else { continue };
            let _ = stream.set_read_timeout(Some(Duration::from_secs(1)));
            while !stop.load(Relaxed) && stream.write_all(b"GET /livez HTTP/1.1\r\nhost: a\r\n\r\n").is_ok() {
                if !stream.read(&mut [0; 1024]).is_ok_and(|length| length > 0) {
                    break;
                }
            }
        }
    });
}

/// While a hundred of these do it.
fn keep_no_probe_out(router: &Router, squat: impl Fn(&AtomicBool, SocketAddr) + Copy + Send + 'static) {
    let (admin, stop) = (router.admin(), Arc::new(AtomicBool::new(false)));
    let squatters: Vec<_> = (0..100)
        .map(|_| {
            let stop = Arc::clone(&stop);
            std::thread::spawn(move || squat(&stop, admin))
        })
        .collect();
    // Three probes in a row that take longer than the kubelet waits would restart the pod; a whole minute of them is less.
    let took: Vec<Duration> = (0..20).map(|_| probe(router)).collect();
    stop.store(true, Relaxed);
    assert!(took.iter().all(|took| *took < Duration::from_secs(5)), "{took:?}");
    for squatter in squatters {
        squatter.join().unwrap();
    }
}

#[test]
fn e13_answers_that_nobody_reads_leave_places_for_probes() {
    let router = routers(2000);
    let request = b"GET /api/status HTTP/1.1\r\nhost: localhost\r\n\r\n";
    let mut clients: Vec<Client> = (0..40).map(|_| Client::send(router.admin(), request)).collect();
    let status = |client: &mut Client| String::from_utf8(client.read(12)).unwrap();
    let statuses: Vec<String> = clients.iter_mut().map(status).collect();
    let served = statuses.iter().filter(|status| *status == "HTTP/1.1 200").count();
    let refused = statuses.iter().filter(|status| *status == "HTTP/1.1 503").count();
    assert_eq!((served, refused), (24, 16), "{statuses:?}");
    let index = statuses.iter().position(|status| status == "HTTP/1.1 503").unwrap();
    let says = clients[index].read_until("the reason", |seen| seen.ends_with(b"try again in a second\n"));
    let says = String::from_utf8(says).unwrap();
    assert!(says.contains("retry-after: 1") && says.contains("at most 48 at a time, 24 from one address"), "{says}");
    probes_are_answered(&router, 20, "unread answers");
    drop(clients);
    // And then others are served again.
    crate::support::eventually("a place", || router.get("/metrics").0 == 200);
}

#[test]
fn e13_the_admin_has_threads_of_its_own_and_gives_way_to_connections() {
    let router = Router::routing(&[(NAME, Backend::named("served").address())]);
    assert_eq!(router.get("/metrics").0, 200);
    let tasks = std::fs::read_dir(format!("/proc/{}/task", router.pid().as_raw_nonzero())).unwrap();
    let niceness = |stat: &str| -> i32 {
        let (_, fields) = stat.rsplit_once(") ").unwrap();
        fields.split(' ').nth(16).unwrap().parse().unwrap()
    };
    let mut threads = Vec::new();
    for task in tasks.map(|task| task.unwrap().path()) {
        let name = std::fs::read_to_string(task.join("comm")).unwrap();
        threads.push((name.trim().to_owned(), niceness(&std::fs::read_to_string(task.join("stat")).unwrap())));
    }
    let of = |name: &str| threads.iter().find(|(other, _)| other == name).unwrap_or_else(|| panic!("{threads:?}")).1;
    assert_eq!(of("admin-answers"), of("admin") + 10, "{threads:?}");
    assert_eq!(of("admin"), of("snigate"), "{threads:?}");
}

#[test]
fn e13_probes_are_answered_while_long_answers_are_made_and_no_connection_is_free() {
    let backend = Backend::echo();
    let names: Vec<String> = (0..5000).map(|number| format!("cluster{number:05}.region.example.test")).collect();
    let routes: Vec<_> = names.iter().map(|name| (name.as_str(), backend.address())).collect();
    let router = Router::start(&config(&routes, "workers: 1\nlimits: {connections: 5}\n"));
    let hello = Hello::to(&names[7]).record();
    let mut clients: Vec<Client> = (0..5).map(|_| Client::send(router.address(), &hello)).collect();
    for client in &mut clients {
        assert_eq!(client.read(hello.len()).len(), hello.len());
    }
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for path in ["/metrics", "/api/status"] {
            let (router, stop) = (&router, &stop);
            scope.spawn(move || {
                while !stop.load(Relaxed) {
                    assert_eq!(router.get(path).0, 200);
                }
            });
        }
        let begun = Instant::now();
        let mut longest = Duration::ZERO;
        while begun.elapsed() < Duration::from_secs(3) {
            longest = longest.max(probe(&router));
        }
        stop.store(true, Relaxed);
        assert!(longest < Duration::from_secs(1), "{longest:?}");
    });
}
