//! The record of a connection, counted and logged once.

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant, SystemTime};

use serde::{Deserialize, Serialize};
use tracing::{Level, enabled};

use super::address::{CompactAddress, ip_text, socket_text};
use super::counters::{ListenerTelemetry, RouteCounters};
use super::outcome::{ClosedBy, Outcome};
use super::recent::RecentRejection;
use crate::client_hello::{Alpn, ClientHello, Ja4};
use crate::server_hello::{Answer, alert_name};

/// The longest server name in a log line, in bytes; longer ones (all invalid) are truncated.
const MAX_LOGGED_NAME: usize = 255;

/// The record of one connection: opened when it is accepted; counted and logged exactly once, when it is dropped.
///
/// A connection whose task panics is counted too, as [`Outcome::LocalError`].
#[derive(Debug)]
pub(crate) struct ConnectionRecord {
    listener: Arc<ListenerTelemetry>,
    route: Arc<RouteCounters>,
    client: CompactAddress,
    opened: Instant,
    pub(crate) fields: LogFields,
    /// Whether the pool knows that the endpoint has sent nothing.
    pub(crate) no_answer_reported: bool,
    received: u64,
    sent: u64,
    outcome: Outcome,
    closed_by: ClosedBy,
    /// Whether its line is written, once that is decided.
    is_logged: Option<bool>,
    is_counted: bool,
    /// Whether another process counts and logs the connection.
    is_handed_over: bool,
}

/// A [`ConnectionRecord`] on its way to another process.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct PortableRecord {
    client: SocketAddr,
    age: Duration,
    received: u64,
    sent: u64,
    no_answer_reported: bool,
    fields: LogFields,
}

/// Fields of the log line that become known while a connection is served.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(crate) struct LogFields {
    /// `network.peer.address`: the load balancer, if a PROXY header carried the client's address.
    pub(crate) peer: Option<Box<IpAddr>>,
    /// `server.address`, escaped.
    pub(crate) server_name: Option<Box<str>>,
    /// Boxed, because that takes less space than its fields do here.
    pub(crate) offer: Option<Box<Offer>>,
    /// `tls.established.version` or `tls.alert`: the upstream's first message.
    #[serde(with = "portable_answer")]
    pub(crate) answer: Option<Answer>,
    /// `upstream.address`
    upstream: Option<CompactAddress>,
    /// `upstream.local.address`: our address as the API server sees it, as in its audit log.
    upstream_local: Option<CompactAddress>,
    /// `hello_ms`: from accept until the hello is complete.
    pub(crate) hello: Option<Micros>,
    /// `connect_ms`: from the route decision until an endpoint is connected.
    pub(crate) connect: Option<Micros>,
    /// `answer_ms`: from the connect to the endpoint's first bytes.
    pub(crate) answer_took: Option<Micros>,
    /// `reason`: what went wrong; on a connection that was served, the endpoints that failed first.
    pub(crate) reason: Option<Box<str>>,
    /// Boxed, because it is known at the end only.
    #[serde(skip)]
    pub(crate) measured: Option<Box<Measured>>,
}

/// What the ClientHello offers.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Offer {
    /// `tls.next_protocol`, escaped.
    pub(crate) next_protocol: Option<Box<str>>,
    /// `tls.protocol.version`: the highest.
    pub(crate) version: u16,
    /// `tls.ech`
    pub(crate) has_ech: bool,
    /// `tls.client.ja4`, if it was needed.
    #[serde(with = "portable_ja4")]
    ja4: Option<Ja4>,
}

/// What the kernel has measured of both connections.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Measured {
    /// `client.rtt_ms`
    pub(crate) client_rtt: Option<Duration>,
    /// `client.retransmits`
    pub(crate) client_retransmits: Option<u32>,
    /// `upstream.rtt_ms`
    pub(crate) upstream_rtt: Option<Duration>,
}

impl LogFields {
    /// The fingerprint of the client whose hello this is, computed once.
    pub(crate) fn fingerprint(&mut self, hello: &ClientHello<'_>) -> Option<Ja4> {
        let offer = self.offer.as_mut()?;
        Some(*offer.ja4.get_or_insert_with(|| hello.ja4()))
    }
}

impl Offer {
    pub(crate) fn of(hello: &ClientHello<'_>) -> Self {
        let protocols = |offered: Alpn<'_>| escape(&offered.iter().collect::<Vec<_>>().join(&b','));
        Self {
            next_protocol: hello.alpn.ok().map(protocols),
            version: hello.highest_version(),
            has_ech: hello.ech,
            ja4: None,
        }
    }
}

impl ConnectionRecord {
    /// Opens the record of a connection that is not routed yet.
    pub(crate) fn open(listener: &Arc<ListenerTelemetry>, client: SocketAddr) -> Self {
        let unrouted = &listener.counters.unrouted;
        unrouted.active.fetch_add(1, Relaxed);
        Self {
            listener: Arc::clone(listener),
            route: Arc::clone(unrouted),
            client: client.into(),
            opened: Instant::now(),
            fields: LogFields::default(),
            no_answer_reported: false,
            received: 0,
            sent: 0,
            outcome: Outcome::LocalError,
            closed_by: ClosedBy::Us,
            is_logged: None,
            is_counted: true,
            is_handed_over: false,
        }
    }

    /// Continues the record of another process, whose route has these counters.
    pub(crate) fn adopt(listener: &Arc<ListenerTelemetry>, route: &Arc<RouteCounters>, record: PortableRecord) -> Self {
        let PortableRecord { client, age, received, sent, no_answer_reported, fields } = record;
        let mut adopted = Self::open(listener, client);
        adopted.routed(route);
        route.adopted.fetch_add(1, Relaxed);
        let now = Instant::now();
        adopted.opened = now.checked_sub(age).unwrap_or(now);
        (adopted.received, adopted.sent) = (received, sent);
        adopted.no_answer_reported = no_answer_reported;
        adopted.fields = fields;
        adopted
    }

    /// The record for another process.
    pub(crate) fn to_portable(&self) -> PortableRecord {
        PortableRecord {
            client: self.client(),
            age: self.age(),
            received: self.received,
            sent: self.sent,
            no_answer_reported: self.no_answer_reported,
            fields: self.fields.clone(),
        }
    }

    /// The connection cannot be parked. Logged at most once per second.
    pub(crate) fn cannot_park(&self, reason: &std::io::Error) {
        if self.listener.counters.may_log_unparked() {
            tracing::warn!(%reason, "cannot park connections at rest");
        }
    }

    /// The other process has adopted the record: here it is neither counted nor logged.
    pub(crate) fn handed_over(mut self) {
        self.is_handed_over = true;
    }

    /// The name of the listener.
    pub(crate) fn listener(&self) -> &str {
        &self.listener.name
    }

    /// The name of the route.
    pub(crate) fn route(&self) -> &str {
        self.route.name()
    }

    /// The client, in its canonical form.
    pub(crate) fn client(&self) -> SocketAddr {
        self.client.into()
    }

    /// The client's address, in its canonical form.
    pub(crate) fn source(&self) -> IpAddr {
        self.client().ip()
    }

    /// The peer is a load balancer, and this is the client of its PROXY header.
    pub(crate) fn set_client(&mut self, client: SocketAddr) {
        self.fields.peer = Some(Box::new(self.source()));
        self.client = canonical(client).into();
    }

    /// Bytes received from the client, and sent to it.
    pub(crate) fn bytes(&self) -> (u64, u64) {
        (self.received, self.sent)
    }

    /// Time since the connection was accepted.
    pub(crate) fn age(&self) -> Duration {
        self.opened.elapsed()
    }

    /// The hello is complete.
    pub(crate) fn hello_complete(&mut self) {
        let age = self.age();
        self.listener.counters.hello_seconds.observe(age);
        self.fields.hello = Some(age.into());
    }

    /// A route was found. Returns how many connections it has, including this one.
    pub(crate) fn routed(&mut self, route: &Arc<RouteCounters>) -> i64 {
        self.route.active.fetch_sub(1, Relaxed);
        let before = route.active.fetch_add(1, Relaxed);
        self.route = Arc::clone(route);
        before + 1
    }

    /// An endpoint is connected.
    pub(crate) fn connected(&mut self, took: Duration, upstream: SocketAddr, local: SocketAddr) {
        self.route.durations().connect.observe(took);
        self.fields.connect = Some(took.into());
        self.fields.upstream = Some(upstream.into());
        self.fields.upstream_local = Some(local.into());
    }

    /// The endpoint has sent its first bytes.
    pub(crate) fn answered(&mut self, answer: Option<Answer>) {
        let before = [self.fields.hello, self.fields.connect].into_iter().flatten().map(Duration::from).sum();
        let took = self.age().saturating_sub(before);
        self.route.answered(took);
        self.fields.answer = answer;
        self.fields.answer_took = Some(took.into());
    }

    /// The connection is rejected after `received` bytes. It no longer counts as active while it lingers.
    pub(crate) fn rejected(&mut self, received: usize) {
        self.received(received);
        if std::mem::take(&mut self.is_counted) {
            self.route.active.fetch_sub(1, Relaxed);
        }
    }

    /// Bytes were received from the client.
    pub(crate) fn received(&mut self, bytes: usize) {
        self.received += bytes as u64;
        self.route.received.fetch_add(bytes as u64, Relaxed);
    }

    /// Bytes were sent to the client.
    pub(crate) fn sent(&mut self, bytes: usize) {
        self.sent += bytes as u64;
        self.route.sent.fetch_add(bytes as u64, Relaxed);
    }

    /// Whether nothing was sent to the client yet.
    pub(crate) fn has_sent_nothing(&self) -> bool {
        self.sent == 0
    }

    /// Sets how the connection ended. It is counted and logged when the record is dropped.
    pub(crate) fn end(&mut self, outcome: Outcome, closed_by: ClosedBy, reason: Option<Box<str>>) {
        if reason.is_some() {
            self.fields.reason = reason;
        }
        self.outcome = outcome;
        self.closed_by = closed_by;
    }

    /// Whether the client closed without sending a byte, as a load balancer's TCP check does.
    fn is_bare(&self) -> bool {
        self.outcome == Outcome::ClientGone && self.received == 0
    }

    fn recent_rejection(&self) -> RecentRejection {
        RecentRejection {
            at: SystemTime::now(),
            client: self.client(),
            listener: self.listener.name.clone(),
            route: self.route.name().into(),
            server_name: self.fields.server_name.clone(),
            outcome: self.outcome,
            reason: self.fields.reason.clone(),
        }
    }

    /// Whether a connection that is served will have a line, whatever its end.
    pub(crate) fn logs_served() -> bool {
        enabled!(Level::INFO)
    }

    /// Whether the line is written. The connection has ended.
    pub(crate) fn is_logged(&mut self) -> bool {
        // Once: the limit counts.
        let is_logged = self.is_logged.unwrap_or_else(|| {
            is_enabled(self.level())
                && (!self.outcome.is_rejection()
                    || self.is_bare()
                    || self.listener.counters.line_limit.admits(self.outcome))
        });
        self.is_logged = Some(is_logged);
        is_logged
    }

    fn level(&self) -> Level {
        if self.is_bare() { Level::DEBUG } else { self.outcome.level() }
    }

    /// Logs what is known so far of a connection that lasts.
    pub(crate) fn log_progress(&self, measured: impl FnOnce() -> Measured) {
        if Self::logs_served() {
            self.write_line(Line::Open, &measured());
        }
    }

    fn log(&self) {
        let is_refusal =
            self.outcome.is_rejection() && self.closed_by == ClosedBy::Us && self.fields.upstream.is_none();
        let line = if is_refusal { Line::Refused } else { Line::Connection };
        self.write_line(line, &self.fields.measured.as_deref().copied().unwrap_or_default());
    }

    fn write_line(&self, line: Line, measured: &Measured) {
        let offer = self.fields.offer.as_deref();
        let Measured { client_rtt, client_retransmits, upstream_rtt } = *measured;
        let has_ended = line != Line::Open;
        macro_rules! line {
            ($level:expr, $message:literal) => {
                tracing::event!(
                    $level,
                    outcome = has_ended.then(|| self.outcome.label()),
                    closed_by = has_ended.then(|| self.closed_by.label()),
                    route = self.route.name(),
                    listener = &*self.listener.name,
                    client.address = &*ip_text(self.source()),
                    client.port = self.client().port(),
                    network.peer.address = self.fields.peer.as_deref().copied().map(ip_text).as_deref(),
                    server.address = self.fields.server_name.as_deref(),
                    tls.next_protocol = offer.and_then(|offer| offer.next_protocol.as_deref()),
                    tls.protocol.version = offer.map(|offer| version(offer.version)),
                    tls.client.ja4 = offer.and_then(|offer| offer.ja4).map(tracing::field::display),
                    tls.ech = offer.and_then(|offer| offer.has_ech.then_some(true)),
                    tls.established.version = self.fields.answer.and_then(established).map(version),
                    tls.alert = self.fields.answer.and_then(alert_of).map(tracing::field::display),
                    upstream.address = self.fields.upstream.map(|at| socket_text(at.into())).as_deref(),
                    upstream.local.address = self.fields.upstream_local.map(|at| socket_text(at.into())).as_deref(),
                    bytes.received = self.received,
                    bytes.sent = self.sent,
                    duration_ms = milliseconds(self.age()),
                    hello_ms = self.fields.hello.map(Micros::milliseconds),
                    connect_ms = self.fields.connect.map(Micros::milliseconds),
                    answer_ms = self.fields.answer_took.map(Micros::milliseconds),
                    client.rtt_ms = client_rtt.map(milliseconds),
                    client.retransmits = client_retransmits,
                    upstream.rtt_ms = upstream_rtt.map(milliseconds),
                    reason = self.fields.reason.as_deref(),
                    $message
                )
            };
        }
        macro_rules! line_at {
            ($level:expr) => {
                if line == Line::Refused { line!($level, "refused") } else { line!($level, "connection") }
            };
        }
        match self.level() {
            _ if line == Line::Open => line!(Level::INFO, "connection open"),
            Level::ERROR => line_at!(Level::ERROR),
            Level::WARN => line_at!(Level::WARN),
            Level::INFO => line_at!(Level::INFO),
            _ => line_at!(Level::DEBUG),
        }
    }
}

/// What a log line tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Line {
    /// The connection lasts.
    Open,
    /// It has ended.
    Connection,
    /// The client was rejected.
    Refused,
}

impl Drop for ConnectionRecord {
    fn drop(&mut self) {
        if self.is_counted {
            self.route.active.fetch_sub(1, Relaxed);
        }
        if self.is_handed_over {
            return;
        }
        self.route.count(&self.listener.name, self.outcome);
        self.route.durations().connection.observe(self.age());
        if self.outcome.is_rejection() && !self.is_bare() {
            self.listener.counters.recent_rejections.add(self.recent_rejection());
        }
        if self.is_logged() {
            self.log();
        }
    }
}

/// Whether lines of this level are written.
fn is_enabled(level: Level) -> bool {
    match level {
        Level::ERROR => enabled!(Level::ERROR),
        Level::WARN => enabled!(Level::WARN),
        Level::INFO => enabled!(Level::INFO),
        _ => enabled!(Level::DEBUG),
    }
}

fn established(answer: Answer) -> Option<u16> {
    match answer {
        Answer::Hello(version) | Answer::Retry(version) => Some(version),
        Answer::Alert(_) => None,
    }
}

fn alert_of(answer: Answer) -> Option<Cow<'static, str>> {
    match answer {
        Answer::Hello(_) | Answer::Retry(_) => None,
        Answer::Alert(description) => {
            Some(alert_name(description).map_or_else(|| description.to_string().into(), Cow::from))
        }
    }
}

/// Answers are public and know nothing of serialization.
mod portable_answer {
    use serde::{Deserialize as _, Deserializer, Serialize as _, Serializer};

    use super::Answer;

    #[expect(clippy::ref_option, clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
    pub(super) fn serialize<S: Serializer>(answer: &Option<Answer>, serializer: S) -> Result<S::Ok, S::Error> {
        let portable = answer.map(|answer| match answer {
            Answer::Hello(version) => ("hello", version),
            Answer::Retry(version) => ("retry", version),
            Answer::Alert(description) => ("alert", description.into()),
        });
        portable.serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Answer>, D::Error> {
        let portable: Option<(String, u16)> = Option::deserialize(deserializer)?;
        Ok(portable.and_then(|(kind, number)| match &*kind {
            "hello" => Some(Answer::Hello(number)),
            "retry" => Some(Answer::Retry(number)),
            "alert" => u8::try_from(number).ok().map(Answer::Alert),
            _ => None,
        }))
    }
}

/// Fingerprints are public, too.
mod portable_ja4 {
    use serde::{Deserialize as _, Deserializer, Serialize as _, Serializer};

    use super::Ja4;

    #[expect(clippy::ref_option, reason = "serde passes a reference")]
    pub(super) fn serialize<S: Serializer>(ja4: &Option<Ja4>, serializer: S) -> Result<S::Ok, S::Error> {
        ja4.map(|ja4| ja4.to_string()).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Ja4>, D::Error> {
        let text: Option<String> = Option::deserialize(deserializer)?;
        Ok(text.and_then(|text| text.parse().ok()))
    }
}

/// A duration in microseconds, from one to an hour. Small, because every open connection has several.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub(crate) struct Micros(NonZeroU32);

impl From<Duration> for Micros {
    fn from(duration: Duration) -> Self {
        let micros = duration.as_micros().try_into().unwrap_or(u32::MAX);
        Self(NonZeroU32::new(micros).unwrap_or(NonZeroU32::MIN))
    }
}

impl From<Micros> for Duration {
    fn from(micros: Micros) -> Self {
        Self::from_micros(micros.0.get().into())
    }
}

impl Micros {
    fn milliseconds(self) -> f64 {
        f64::from(self.0.get()) / 1e3
    }
}

fn version(version: u16) -> &'static str {
    match version {
        0x0304 => "1.3",
        0x0303 => "1.2",
        0x0302 => "1.1",
        0x0301 => "1.0",
        _ => "unknown",
    }
}

/// With microsecond resolution.
fn milliseconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

/// A client's bytes for the log: printable ASCII, the rest escaped, truncated to 255 bytes.
pub(crate) fn escape(bytes: &[u8]) -> Box<str> {
    let mut escaped = bytes.escape_ascii().to_string();
    escaped.truncate(MAX_LOGGED_NAME);
    escaped.into()
}

/// The canonical form that rules and logs use: an IPv4-mapped address becomes IPv4.
pub(crate) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(IpAddr::to_canonical(&address.ip()), address.port())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::Counters;

    #[test]
    fn e10_names_are_escaped_and_truncated() {
        let hostile = "a\r\n{\"x\":1}\u{1b}[31m\u{202e}\\".as_bytes();
        assert_eq!(&*escape(hostile), r#"a\r\n{\"x\":1}\x1b[31m\xe2\x80\xae\\"#);
        assert_eq!(escape(&vec![0xff; 70_000]).len(), 255);
    }

    #[test]
    fn e02_mapped_addresses_become_ipv4() {
        assert_eq!(canonical("[::ffff:192.0.2.1]:7".parse().unwrap()), "192.0.2.1:7".parse().unwrap());
        assert_eq!(canonical("[2001:db8::1]:7".parse().unwrap()), "[2001:db8::1]:7".parse().unwrap());
    }

    /// `SNIGATE_NAMES` sets the number of names.
    #[tokio::test]
    async fn z8_random_names_do_not_grow_memory() {
        // In a process of its own: the memory of this one includes all other tests.
        if std::env::var_os("SNIGATE_ALONE").is_none() {
            let mut alone = std::process::Command::new(std::env::current_exe().unwrap());
            alone.args(["--exact", "telemetry::record::tests::z8_random_names_do_not_grow_memory"]);
            let output = alone.env("SNIGATE_ALONE", "1").output().unwrap();
            let stdout = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success() && stdout.contains("1 passed"), "{stdout}");
            return;
        }
        let names = std::env::var("SNIGATE_NAMES").map_or(100_000, |names| names.parse().unwrap());
        let counters = Arc::new(Counters::new(50));
        let listener = counters.listener("listener");
        let resident = || procfs::process::Process::myself().unwrap().stat().unwrap().rss * procfs::page_size();
        let mut before = 0;
        for index in 0..names {
            let mut record = ConnectionRecord::open(&listener, "192.0.2.1:7".parse().unwrap());
            record.fields.server_name = Some(escape(format!("n{index}.unknown.example").as_bytes()));
            record.end(Outcome::UnknownName, ClosedBy::Us, None);
            drop(record);
            if index == names / 10 {
                before = resident();
            }
        }
        let growth = resident().saturating_sub(before);
        assert!(growth < 1 << 20, "{growth} bytes more");
        assert!(counters.routes().is_empty());
        assert_eq!(counters.unrouted.outcomes("listener").get(Outcome::UnknownName), names);
    }

    #[tokio::test]
    async fn d24_a_record_is_closed_once_even_by_a_panic() {
        let counters = Arc::new(Counters::new(0));
        let (listener, route) = (counters.listener("listener"), counters.route("a"));
        for panics in [false, true] {
            let mut record = ConnectionRecord::open(&listener, "192.0.2.1:7".parse().unwrap());
            record.routed(&route);
            assert_eq!(route.active.load(Relaxed), 1);
            let task = tokio::spawn(async move {
                assert!(!panics, "as the test asks");
                record.end(Outcome::Completed, ClosedBy::Client, None);
            });
            assert_eq!(task.await.is_err(), panics);
            assert_eq!(route.active.load(Relaxed), 0);
        }
        let counts = |outcome| route.outcomes("listener").get(outcome);
        assert_eq!((counts(Outcome::Completed), counts(Outcome::LocalError)), (1, 1));
        assert_eq!(counters.unrouted.active.load(Relaxed), 0);
    }
}
