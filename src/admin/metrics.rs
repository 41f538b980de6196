//! The metrics, from the counters.

use std::fmt::Display;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, UNIX_EPOCH};

use strum::VariantArray;
use tokio::runtime::Handle;

use super::exposition::{Exposition, Kind, Rendering};
use super::{AdminHandles, View};
use crate::listener::accept::ERROR_LABELS;
use crate::relay::budget;
use crate::telemetry::{Counters, Durations, Histogram, Outcome, Reloads, RouteCounters, Stage, UNROUTED};
use crate::upstream::{DRAINED, EndpointState};

/// Series of each route and endpoint in `/metrics`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum PerRoute {
    /// All of them.
    #[default]
    Full,
    /// Histograms with count and sum, but without buckets.
    Totals,
    /// None: every metric is a sum over all routes and endpoints.
    Off,
}

/// The current metrics.
pub(super) fn render(handles: &AdminHandles) -> Rendering {
    let snapshot = MetricsSnapshot {
        counters: Arc::clone(&handles.counters),
        view: handles.view.load_full(),
        routes: handles.counters.routes(),
        listeners: handles.counters.listeners(),
        per_route: **handles.per_route.load(),
        runtime: RuntimeMetrics::of(&handles.data_path),
    };
    snapshot.render()
}

#[derive(Debug)]
struct MetricsSnapshot {
    counters: Arc<Counters>,
    view: Arc<View>,
    /// Routes of the configuration, and recently removed ones.
    routes: Vec<Arc<RouteCounters>>,
    /// Names; likewise.
    listeners: Vec<Box<str>>,
    per_route: PerRoute,
    runtime: RuntimeMetrics,
}

#[derive(Clone, Copy, Debug)]
struct RuntimeMetrics {
    workers: usize,
    tasks: usize,
    queued: usize,
}

impl RuntimeMetrics {
    fn of(runtime: &Handle) -> Self {
        let metrics = runtime.metrics();
        Self { workers: metrics.num_workers(), tasks: metrics.num_alive_tasks(), queued: metrics.global_queue_depth() }
    }
}

/// The series of one route, or of all routes together.
#[derive(Clone, Copy)]
struct Group<'s> {
    /// The label `route`; empty: there is none.
    route: &'s str,
    counters: &'s RouteCounters,
    kind: GroupKind,
}

impl Group<'_> {
    /// Whether its series are exported even while they are all zero.
    fn is_always_exported(&self) -> bool {
        self.kind != GroupKind::Route
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum GroupKind {
    Route,
    Unrouted,
    All,
}

/// The current state of an endpoint.
struct EndpointGroup<'s> {
    route: &'s str,
    address: String,
    /// `None`: it is no longer configured, but has connections.
    state: Option<&'static str>,
    connections: usize,
    certificate: Option<CertificateNumbers>,
}

#[derive(Clone, Copy)]
struct CertificateNumbers {
    expires: i64,
    uncovered: usize,
}

impl MetricsSnapshot {
    fn render(&self) -> Rendering {
        let mut out = Exposition::default();
        let all = (self.per_route == PerRoute::Off).then(|| self.all());
        let groups = self.groups(all.as_ref());
        self.connections(&mut out, &groups);
        bytes(&mut out, &groups);
        self.latencies(&mut out, &groups);
        self.endpoints(&mut out);
        self.accept_errors(&mut out);
        self.reloads(&mut out);
        self.log(&mut out);
        self.runtime(&mut out);
        out.family("snigate_build", Kind::Info, "Version of snigate");
        out.sample(&[("version", env!("CARGO_PKG_VERSION"))], 1);
        self.process(&mut out);
        out.finish()
    }

    fn all(&self) -> RouteCounters {
        let routes = self.routes.iter().map(|route| &**route);
        RouteCounters::sum(routes.chain([&*self.counters.unrouted, &self.counters.forgotten]))
    }

    fn groups<'s>(&'s self, all: Option<&'s RouteCounters>) -> Vec<Group<'s>> {
        if let Some(counters) = all {
            return vec![Group { route: "", counters, kind: GroupKind::All }];
        }
        let unrouted = Group { route: UNROUTED, counters: &self.counters.unrouted, kind: GroupKind::Unrouted };
        let group =
            |counters: &'s Arc<RouteCounters>| Group { route: counters.name(), counters, kind: GroupKind::Route };
        std::iter::once(unrouted).chain(self.routes.iter().map(group)).collect()
    }

    fn connections(&self, out: &mut Exposition, groups: &[Group<'_>]) {
        out.family("snigate_connections", Kind::Counter, "Ended connections, by outcome");
        for group in groups {
            let counts: Vec<_> =
                self.listeners.iter().map(|listener| (listener, group.counters.outcomes(listener))).collect();
            if !group.is_always_exported() && counts.iter().all(|(_, counts)| counts.are_zero()) {
                continue;
            }
            for (listener, counts) in counts {
                for &outcome in Outcome::VARIANTS.iter().filter(|outcome| occurs(outcome.stage(), group.kind)) {
                    let labels = [("listener", &**listener), ("route", group.route), ("outcome", outcome.label())];
                    out.sample(&labels, counts.get(outcome));
                }
            }
        }
        out.family("snigate_connections_active", Kind::Gauge, "Open connections");
        for group in groups {
            out.sample(&[("route", group.route)], group.counters.active.load(Relaxed));
        }
        let parked = self.counters.parked_connections.load(Relaxed);
        gauge(out, "snigate_connections_parked", "Open connections that are parked", parked);
        gauge(
            out,
            "snigate_buffered_bytes",
            "Bytes buffered for incomplete ClientHellos and slow readers",
            budget::bytes(),
        );
        gauge(out, "snigate_buffered_bytes_limit", "Maximum number of buffered bytes", budget::limit());
        let limit = self.counters.connections_limit.load(Relaxed);
        gauge(out, "snigate_connections_limit", "Maximum number of concurrent connections", limit);
        gauge(
            out,
            "snigate_predecessor_connections",
            "Connections still open in old processes after an upgrade",
            self.counters.predecessor_connections.load(Relaxed),
        );
    }

    fn latencies(&self, out: &mut Exposition, groups: &[Group<'_>]) {
        for (name, help, histogram) in [
            ("snigate_hello_seconds", "Time from accept to the complete ClientHello", &self.counters.hello_seconds),
            ("snigate_check_lateness_seconds", "How late health checks begin", &self.counters.check_lateness),
            ("snigate_lookup_lateness_seconds", "How late lookups of hostnames begin", &self.counters.lookup_lateness),
        ] {
            out.family(name, Kind::Histogram, help);
            out.histogram(&[], &histogram.get(), true);
        }
        let routed: Vec<_> = groups.iter().filter(|group| group.kind != GroupKind::Unrouted).copied().collect();
        let family =
            |out: &mut Exposition, name, help, groups: &[Group<'_>], histogram: fn(&Durations) -> &Histogram| {
                out.family(name, Kind::Histogram, help);
                for group in groups {
                    if !group.is_always_exported() && !group.counters.has_durations() {
                        continue;
                    }
                    let observed = histogram(group.counters.durations()).get();
                    if group.is_always_exported() || observed.count() > 0 {
                        let has_buckets = self.per_route != PerRoute::Totals || group.is_always_exported();
                        out.histogram(&[("route", group.route)], &observed, has_buckets);
                    }
                }
            };
        let connect = "Time from the route decision to the connected endpoint";
        family(out, "snigate_connect_seconds", connect, &routed, |durations| &durations.connect);
        let answer = "Time from the connect to the first bytes from the endpoint";
        family(out, "snigate_answer_seconds", answer, &routed, |durations| &durations.answer);
        family(
            out,
            "snigate_connection_seconds",
            "Duration of connections, from accept to the end",
            groups,
            |durations| &durations.connection,
        );
    }

    fn endpoints(&self, out: &mut Exposition) {
        let endpoints = self.endpoint_groups();
        out.family("snigate_endpoint_state", Kind::Gauge, "1 for the current state of the endpoint, 0 for the others");
        if self.per_route == PerRoute::Off {
            for state in states() {
                let count = endpoints.iter().filter(|endpoint| endpoint.state == Some(state)).count();
                out.sample(&[("state", state)], count);
            }
        } else {
            for endpoint in &endpoints {
                let Some(current) = endpoint.state else { continue };
                // A series of its own only while it is drained.
                for state in states().filter(|state| *state != DRAINED || current == DRAINED) {
                    let [route, address] = endpoint.labels();
                    out.sample(&[route, address, ("state", state)], u8::from(current == state));
                }
            }
        }
        let sum = |values: &mut dyn Iterator<Item = i64>| Some(values.sum());
        self.endpoint_gauge(
            out,
            &endpoints,
            ("snigate_endpoint_connections", "Open connections to the endpoint"),
            |endpoint| Some(whole(endpoint.connections)).filter(|_| endpoint.connections > 0),
            sum,
        );
        self.endpoint_gauge(
            out,
            &endpoints,
            (
                "snigate_endpoint_certificate_expiry_timestamp_seconds",
                "Expiry of the certificate that the last health check received, as a Unix timestamp",
            ),
            |endpoint| Some(endpoint.certificate?.expires),
            |values| values.min(),
        );
        self.endpoint_gauge(
            out,
            &endpoints,
            ("snigate_endpoint_certificate_uncovered_names", "Names of the route that this certificate does not cover"),
            |endpoint| Some(whole(endpoint.certificate?.uncovered)),
            sum,
        );
        let help = "1 while no endpoint is ready and connections are sent to all of them";
        out.family("snigate_route_failing_open", Kind::Gauge, help);
        let failing = || self.view.routes.iter().filter(|route| route.upstream.fails_open());
        if self.per_route == PerRoute::Off {
            out.sample(&[], failing().count());
        } else {
            for route in failing() {
                out.sample(&[("route", route.counters.name())], 1);
            }
        }
    }

    fn endpoint_groups(&self) -> Vec<EndpointGroup<'_>> {
        let mut groups = Vec::with_capacity(self.view.routes.len());
        for route in &self.view.routes {
            let names = &route.upstream.setup().names;
            groups.extend(route.upstream.endpoints().iter().map(|endpoint| EndpointGroup {
                route: route.counters.name(),
                address: endpoint.address.to_string(),
                state: Some(route.upstream.state_label(endpoint)),
                connections: endpoint.connections(),
                certificate: endpoint.certificate().map(|certificate| CertificateNumbers {
                    expires: certificate.expires,
                    uncovered: certificate.not_covered(names).len(),
                }),
            }));
            groups.extend(route.upstream.former_endpoints().iter().map(|endpoint| EndpointGroup {
                route: route.counters.name(),
                address: endpoint.address.to_string(),
                state: None,
                connections: endpoint.connections(),
                certificate: None,
            }));
        }
        groups
    }

    /// A gauge of each endpoint that has a value, or of all endpoints together.
    fn endpoint_gauge(
        &self,
        out: &mut Exposition,
        endpoints: &[EndpointGroup<'_>],
        (name, help): (&str, &str),
        value: impl Fn(&EndpointGroup<'_>) -> Option<i64>,
        of_all: impl Fn(&mut dyn Iterator<Item = i64>) -> Option<i64>,
    ) {
        out.family(name, Kind::Gauge, help);
        if self.per_route == PerRoute::Off {
            if let Some(value) = of_all(&mut endpoints.iter().filter_map(&value)) {
                out.sample(&[], value);
            }
            return;
        }
        for endpoint in endpoints {
            if let Some(value) = value(endpoint) {
                out.sample(&endpoint.labels(), value);
            }
        }
    }

    fn accept_errors(&self, out: &mut Exposition) {
        out.family("snigate_accept_errors", Kind::Counter, "Failed accept calls, by error");
        let counts = self.counters.accept_errors();
        for error in ERROR_LABELS {
            out.sample(&[("error", error)], counts.get(error).copied().unwrap_or(0));
        }
    }

    fn reloads(&self, out: &mut Exposition) {
        let Reloads { succeeded, failed, last_failed, last_success, .. } = &self.counters.reloads;
        let help = "Configuration reloads, by result";
        out.family("snigate_config_reloads", Kind::Counter, help);
        for (result, count) in [("success", succeeded), ("failure", failed)] {
            out.sample(&[("result", result)], count.load(Relaxed));
        }
        let successful = u8::from(!last_failed.load(Relaxed));
        gauge(
            out,
            "snigate_config_last_reload_successful",
            "1 if the last configuration reload succeeded, 0 if it failed",
            successful,
        );
        gauge(
            out,
            "snigate_config_last_reload_success_timestamp_seconds",
            "When the running configuration was applied, as a Unix timestamp",
            last_success.load(Relaxed),
        );
    }

    fn log(&self, out: &mut Exposition) {
        out.family(
            "snigate_log_lines_lost",
            Kind::Counter,
            "Log lines lost because standard error failed or was too slow",
        );
        out.sample(&[], self.counters.log_lines_lost.load(Relaxed));
    }

    /// Metrics of the data path's tokio runtime.
    fn runtime(&self, out: &mut Exposition) {
        let RuntimeMetrics { workers, tasks, queued } = self.runtime;
        gauge(out, "snigate_runtime_workers", "Worker threads", workers);
        gauge(out, "snigate_runtime_tasks", "Tasks: one per connection, and a few per endpoint", tasks);
        gauge(out, "snigate_runtime_queued_tasks", "Tasks in the global queue that wait for a worker thread", queued);
    }

    /// The standard process metrics. Those that the kernel does not report are left out.
    fn process(&self, out: &mut Exposition) {
        let started = self.counters.started.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        gauge(out, "process_start_time_seconds", "Start time of the process, as a Unix timestamp", started);
        let Ok(process) = procfs::process::Process::myself() else { return };
        if let Ok(stat) = process.stat() {
            let milliseconds = (stat.utime + stat.stime) * 1000 / procfs::ticks_per_second();
            out.family("process_cpu_seconds", Kind::Counter, "CPU time, user and system");
            out.sample(&[], Duration::from_millis(milliseconds).as_secs_f64());
            let resident = stat.rss.saturating_mul(procfs::page_size());
            gauge(out, "process_resident_memory_bytes", "Resident memory", resident);
        }
        if let Ok(open) = process.fd_count() {
            gauge(out, "process_open_fds", "Open file descriptors", open);
        }
        if let Some(max) = rustix::process::getrlimit(rustix::process::Resource::Nofile).current {
            gauge(out, "process_max_fds", "Maximum number of open file descriptors", max);
        }
    }
}

fn bytes(out: &mut Exposition, groups: &[Group<'_>]) {
    out.family("snigate_bytes", Kind::Counter, "Bytes received from clients and sent to them");
    for group in groups {
        let (received, sent) = (group.counters.received.load(Relaxed), group.counters.sent.load(Relaxed));
        if group.is_always_exported() || received > 0 || sent > 0 {
            for (direction, count) in [("received", received), ("sent", sent)] {
                out.sample(&[("route", group.route), ("direction", direction)], count);
            }
        }
    }
}

impl EndpointGroup<'_> {
    fn labels(&self) -> [(&str, &str); 2] {
        [("route", self.route), ("endpoint", &self.address)]
    }
}

/// Whether a connection of such a group can end at this stage. Series that can never count are left out.
fn occurs(stage: Stage, kind: GroupKind) -> bool {
    match stage {
        Stage::BeforeRoute => kind != GroupKind::Route,
        Stage::Connect | Stage::Relay => kind != GroupKind::Unrouted,
        Stage::Any => true,
    }
}

/// The states of endpoints.
fn states() -> impl Iterator<Item = &'static str> {
    EndpointState::VARIANTS.iter().map(|state| state.label()).chain([DRAINED])
}

fn whole(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn gauge(out: &mut Exposition, name: &str, help: &str, value: impl Display) {
    out.family(name, Kind::Gauge, help);
    out.sample(&[], value);
}
