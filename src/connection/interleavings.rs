//! The registry, connections at rest and permits, under many schedules: see [`crate::sync`].

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream as Socket};
use std::sync::{Arc, OnceLock, atomic::AtomicU64};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use shuttle::thread::{JoinHandle, spawn, yield_now};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::Instant;

use super::admission::{SourceLimits, SourceTable};
use super::established::Established;
use super::parking::{Parked, ParkingLot, Unparked};
use super::registry::{CloseReason, Handle, Message, ParkError, Registry, Wait};
use super::tests::settings;
use crate::relay::Rest;
use crate::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use crate::sync::check;
use crate::upstream::{EndpointId, OpenConnections};

/// A connection between two messages, that is not parked yet.
fn connection(registry: &Arc<Registry>) -> Unparked {
    static SOCKET: OnceLock<Socket> = OnceLock::new();
    let socket = SOCKET.get_or_init(|| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        Socket::connect(listener.local_addr().unwrap()).unwrap()
    });
    let peer = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 7);
    let established = Established::sample(peer, settings());
    let handle = registry.register();
    handle.connected_to(established.slot.endpoint().id, None);
    let [client, upstream] = [socket.try_clone().unwrap(), socket.try_clone().unwrap()];
    Unparked { connection: Box::new(Parked::at_rest(established, client, upstream, Rest::new())), handle }
}

fn endpoint_of(unparked: &Unparked) -> EndpointId {
    unparked.connection.established.slot.endpoint().id
}

fn message_of(handle: &mut Handle) -> Option<Message> {
    match handle.poll_message(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(message) => Some(message),
        Poll::Pending => None,
    }
}

/// A connection that comes to rest whenever there is nothing for it, until it is closed or another process takes it.
struct Living {
    unparked: Unparked,
    resumed: UnboundedReceiver<Unparked>,
    /// Whether the other process takes what it is offered.
    is_adopted: bool,
}

#[derive(Default)]
struct Lived {
    received: Vec<Message>,
    was_adopted: bool,
}

impl Living {
    fn live(mut self) -> Lived {
        let mut lived = Lived::default();
        loop {
            while let Some(message) = message_of(&mut self.unparked.handle) {
                lived.received.push(message);
                if matches!(message, Message::Close(_)) {
                    return lived;
                }
            }
            if self.unparked.handle.leaving().is_some() {
                if !self.unparked.handle.begin_offer() {
                    continue;
                }
                // Here the other process has it.
                yield_now();
                if self.is_adopted {
                    lived.was_adopted = true;
                    return lived;
                }
                self.unparked.handle.end_offer();
                self.unparked.handle.set_stays();
                continue;
            }
            let Unparked { connection, handle } = self.unparked;
            self.unparked = match handle.park(connection, Instant::now() + Duration::from_secs(3600)) {
                Ok(()) => loop {
                    match self.resumed.try_recv() {
                        Ok(unparked) => break unparked,
                        Err(_) => yield_now(),
                    }
                },
                Err(ParkError::Notified(unparked)) => unparked,
                Err(ParkError::Unwatched(_, error)) => panic!("{error}"),
            };
            self.unparked.unwatch();
        }
    }
}

/// A registry with a place for connections at rest, and where they go that are to be continued.
fn registry() -> (Arc<Registry>, Arc<AtomicU64>, UnboundedSender<Unparked>, UnboundedReceiver<Unparked>) {
    let (registry, parked) = (Registry::new(), Arc::new(AtomicU64::new(0)));
    let (resume, resumed) = unbounded_channel();
    registry.lot().set(ParkingLot::sending_to(resume.clone(), Arc::clone(&parked)).unwrap()).unwrap();
    (registry, parked, resume, resumed)
}

fn nothing_is_left(registry: &Registry, parked: &AtomicU64) {
    assert_eq!(registry.len(), 0);
    assert_eq!(parked.load(SeqCst), 0);
}

#[test]
fn h24_no_message_is_lost_between_parking_and_resuming() {
    check(|| {
        let (registry, parked, _resume, resumed) = registry();
        let unparked = connection(&registry);
        let endpoint = endpoint_of(&unparked);
        let living = spawn(move || Living { unparked, resumed, is_adopted: false }.live());
        let prober = {
            let registry = Arc::clone(&registry);
            spawn(move || (0..2).map(|_| registry.probe(endpoint, Instant::now())).sum::<usize>())
        };
        let events = {
            let registry = Arc::clone(&registry);
            spawn(move || (0..2).for_each(|_| registry.resume_at(0)))
        };
        let closers: Vec<JoinHandle<usize>> = (0..2)
            .map(|_| {
                let registry = Arc::clone(&registry);
                spawn(move || {
                    let mut reached = 0;
                    while registry.is_connected_to(0, endpoint) {
                        reached += registry.close(&[0], &HashSet::from([endpoint]), CloseReason::Removed);
                        yield_now();
                    }
                    reached
                })
            })
            .collect();
        let probes = prober.join().unwrap();
        events.join().unwrap();
        let closed: usize = closers.into_iter().map(|closer| closer.join().unwrap()).sum();
        let Lived { received, .. } = living.join().unwrap();
        let got = received.iter().filter(|message| matches!(message, Message::Probe(_))).count();
        assert_eq!(got, probes, "whoever is told that it was reached reaches it: {received:?}");
        assert_eq!((closed, received.last()), (1, Some(&Message::Close(CloseReason::Removed))));
        nothing_is_left(&registry, &parked);
    });
}

#[test]
fn h28_a_close_is_carried_out_here_or_known_not_to_be() {
    for is_adopted in [false, true] {
        let schedule = if is_adopted { offer::<true> } else { offer::<false> };
        check(schedule);
    }
}

fn offer<const IS_ADOPTED: bool>() {
    let (registry, parked, resume, resumed) = registry();
    let unparked = connection(&registry);
    let id = registry.id_at(0);
    let living = spawn(move || Living { unparked, resumed, is_adopted: IS_ADOPTED }.live());
    let upgrade = {
        let registry = Arc::clone(&registry);
        spawn(move || {
            let (leaving, left) = unbounded_channel();
            registry.leave_to(leaving);
            let (parked, _) = registry.ask_to_leave(0..1);
            for mut unparked in parked {
                unparked.unwatch();
                resume.send(unparked).unwrap();
            }
            left
        })
    };
    let operator = {
        let registry = Arc::clone(&registry);
        spawn(move || registry.close_one(id))
    };
    let reached = operator.join().unwrap();
    let _left = upgrade.join().unwrap();
    registry.close_all();
    let Lived { received, was_adopted } = living.join().unwrap();
    let is_closed = |reason| received.contains(&Message::Close(reason));
    assert!(!(reached && was_adopted), "the operator was told that it is closed: {received:?}");
    assert_eq!(reached, is_closed(CloseReason::Operator), "{received:?}");
    assert!(was_adopted || is_closed(CloseReason::Operator) || is_closed(CloseReason::Draining), "{received:?}");
    nothing_is_left(&registry, &parked);
}

#[test]
fn f03_connections_that_come_while_all_are_closed_are_closed_too() {
    check(|| {
        let registry = Registry::new();
        let coming: Vec<_> = (0..2)
            .map(|_| {
                let registry = Arc::clone(&registry);
                spawn(move || {
                    let mut handle = registry.register();
                    handle.connected_to(EndpointId::next(), None);
                    loop {
                        match message_of(&mut handle) {
                            Some(Message::Close(reason)) => return reason,
                            _ => yield_now(),
                        }
                    }
                })
            })
            .collect();
        registry.close_all();
        for connection in coming {
            assert_eq!(connection.join().unwrap(), CloseReason::Draining);
        }
        assert_eq!(registry.len(), 0);
    });
}

#[test]
fn a16_what_is_shed_was_waiting_and_is_counted_once() {
    check(|| {
        let registry = Registry::new();
        let waiting: Vec<_> = [true, false, false]
            .into_iter()
            .map(|drops_handle_first| {
                let registry = Arc::clone(&registry);
                spawn(move || {
                    let mut handle = registry.register();
                    let guard = handle.wait(Wait::Hello);
                    yield_now();
                    let was_shed = matches!(message_of(&mut handle), Some(Message::Close(CloseReason::Shed)));
                    // A task that panics drops them in this order.
                    if drops_handle_first {
                        drop(handle);
                        return was_shed;
                    }
                    drop(guard);
                    was_shed || matches!(message_of(&mut handle), Some(Message::Close(CloseReason::Shed)))
                })
            })
            .collect();
        registry.shed_one(0);
        registry.shed_one(0);
        let shed = waiting.into_iter().map(|one| one.join().unwrap()).filter(|shed| *shed).count();
        assert!(shed <= 2);
        assert_eq!(registry.waiting(), [0, 0]);
        assert_eq!(registry.len(), 0);
    });
}

#[test]
fn f06_permits_of_a_source_never_leak_and_are_never_too_many() {
    check(|| {
        let table: Arc<SourceTable> = Arc::default();
        let limits = SourceLimits { concurrent: Some(2), new: None };
        let source = IpAddr::from([192, 0, 2, 1]);
        let held = Arc::new(AtomicUsize::new(0));
        let clients: Vec<_> = (0..3)
            .map(|_| {
                let (table, limits, held) = (Arc::clone(&table), limits.clone(), Arc::clone(&held));
                spawn(move || {
                    for _ in 0..2 {
                        let Ok(permit) = table.acquire(source, &limits) else { continue };
                        assert!(held.fetch_add(1, SeqCst) < 2, "more than the limit");
                        held.fetch_sub(1, SeqCst);
                        drop(permit);
                    }
                })
            })
            .collect();
        clients.into_iter().for_each(|client| client.join().unwrap());
        assert_eq!(table.open(), 0);
        let permits = [table.acquire(source, &limits).unwrap(), table.acquire(source, &limits).unwrap()];
        assert!(table.acquire(source, &limits).is_err());
        drop(permits);
    });
}
