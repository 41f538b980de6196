//! What is to be said of objects.

use std::collections::BTreeSet;

use crate::gateway::api::{Gateway, Key, Kind, ParentRef, TlsRoute};
use crate::gateway::cluster::Reading;
use crate::gateway::plan::{Applied, GatewayStatus, Note, ParentStatus, Plan, RouteStatus};
use crate::gateway::status::{self, problem};
use crate::gateway::translate::Options;
use crate::text::units::counted;
use serde_json::Value;

use super::published::Published;
use crate::commands::doctor::report::{CheckResult, Report, Verdict};

pub(super) struct Objects<'c> {
    pub(super) reading: &'c Reading,
    pub(super) plan: &'c Plan,
    pub(super) options: &'c Options,
    pub(super) published: &'c Published,
}

impl Objects<'_> {
    /// Reports on the cluster, our classes and Gateways, and those of the routes and Ingress objects that are meant.
    pub(super) fn reports(&self, is_meant: impl Fn(Kind, &Key) -> bool) -> Vec<Report> {
        let report = |name: String, results| Report { name, hostname: None, results };
        let of_object = |kind: Kind, key: &Key, results| report(format!("{kind} {key}"), results);
        let statuses = &self.plan.statuses;
        let mut reports = vec![report("cluster".into(), self.cluster())];
        reports.extend(statuses.classes.iter().map(|(key, wanted)| {
            let wanted = status::class(&Value::Null, wanted, "").unwrap_or_default();
            let reported = &self.status(Kind::GatewayClass, key)["conditions"];
            of_object(Kind::GatewayClass, key, conditions("class", &key.name, reported, &wanted["conditions"]))
        }));
        for (key, wanted) in &statuses.gateways {
            reports.push(of_object(Kind::Gateway, key, self.gateway(key, wanted)));
        }
        for (key, route) in self.reading.snapshot.routes.iter().filter(|(key, _)| is_meant(Kind::TlsRoute, key)) {
            let results = self.route(key, route);
            if !results.is_empty() {
                reports.push(of_object(Kind::TlsRoute, key, results));
            }
        }
        let noted = self.plan.notes.iter().filter(|note| note.object.kind == Kind::Ingress);
        let ingresses: BTreeSet<&Key> = statuses.ingresses.iter().chain(noted.map(|note| &note.object.key)).collect();
        for key in ingresses.into_iter().filter(|key| is_meant(Kind::Ingress, key)) {
            reports.push(of_object(Kind::Ingress, key, self.ingress(key)));
        }
        reports
    }

    fn status(&self, kind: Kind, key: &Key) -> &Value {
        self.reading.statuses.get(&(kind, key.clone())).unwrap_or(&Value::Null)
    }

    /// The API server, and what is missing or cannot be read.
    fn cluster(&self) -> Vec<CheckResult> {
        let Reading { server, snapshot, statuses: _, missing } = self.reading;
        let mut results = vec![CheckResult::new(Verdict::Ok, "api", server, "lists all that is read")];
        let is_optional = |kind: Kind| self.options.ingress.is_some() || kind == Kind::ReferenceGrant;
        for kind in missing {
            let verdict = if is_optional(*kind) { Verdict::Note } else { Verdict::Failed };
            let says = "the cluster does not have this kind; install the standard channel of Gateway API";
            results.push(CheckResult::new(verdict, "kind", kind, says));
        }
        if self.plan.statuses.classes.is_empty() && !missing.contains(&Kind::GatewayClass) {
            let verdict = if is_optional(Kind::GatewayClass) { Verdict::Note } else { Verdict::Failed };
            let says = "no GatewayClass names this controller, so Gateways are not served";
            results.push(CheckResult::new(verdict, "class", &self.options.controller, says));
        }
        for (key, gateway) in snapshot.gateways.iter() {
            let class = Key::new("", &*gateway.spec.gateway_class_name);
            if !snapshot.has(Kind::GatewayClass, &class) {
                let says = format!("its GatewayClass {class} does not exist, so that nobody serves it");
                results.push(CheckResult::new(Verdict::Note, "gateway", key, says));
            }
        }
        let has_report = |note: &Note| match note.object.kind {
            Kind::TlsRoute => snapshot.routes.contains_key(&note.object.key),
            kind => kind == Kind::Ingress,
        };
        let others = self.plan.notes.iter().filter(|note| !has_report(note));
        results.extend(others.map(|note| remark(note, note.object.to_string())));
        results
    }

    fn gateway(&self, key: &Key, wanted: &GatewayStatus) -> Vec<CheckResult> {
        let reported = self.status(Kind::Gateway, key);
        let published = &self.plan.statuses.published;
        let wanted = status::gateway(&Value::Null, wanted, published, &Applied::default(), "").unwrap_or_default();
        let mut results = conditions("gateway", &key.name, &reported["conditions"], &wanted["conditions"]);
        results.extend(self.addresses(Kind::Gateway, key));
        let of_listeners = |status: &Value| status["listeners"].as_array().cloned().unwrap_or_default();
        for listener in of_listeners(&wanted) {
            let name = listener["name"].as_str().unwrap_or_default();
            let reported = of_listeners(reported)
                .into_iter()
                .find(|reported| reported["name"] == listener["name"])
                .unwrap_or_default();
            let problems = problems(&reported["conditions"], &listener["conditions"]);
            if problems.is_empty() {
                let gateway = self.reading.snapshot.gateways.get(key);
                let says = gateway.map_or_else(String::new, |gateway| describe_listener(gateway, name, &listener));
                results.push(CheckResult::new(Verdict::Ok, "listener", name, says));
            }
            results.extend(problems.into_iter().map(|says| CheckResult::new(Verdict::Failed, "listener", name, says)));
        }
        results
    }

    fn addresses(&self, kind: Kind, key: &Key) -> Vec<CheckResult> {
        let result = |(value, resolved): (String, &Result<Vec<_>, String>)| match resolved {
            Ok(_) => CheckResult::new(Verdict::Ok, "address", value, "published"),
            Err(reason) => CheckResult::new(
                Verdict::Failed,
                "address",
                value,
                format!("published, but does not resolve: {reason}"),
            ),
        };
        self.published.of_object(self.reading, kind, key).map(result).collect()
    }

    /// Nothing for routes of other controllers.
    fn route(&self, key: &Key, route: &TlsRoute) -> Vec<CheckResult> {
        let mut results = Vec::new();
        let wanted = self.plan.statuses.routes.get(key);
        if let Some(wanted) = wanted {
            results.extend(self.parents(key, wanted));
        }
        let is_read = |namespace: &str| {
            self.options.namespaces.is_empty() || self.options.namespaces.iter().any(|read| read == namespace)
        };
        for parent in route.spec.parent_refs.iter().filter(|parent| parent.is_gateway()) {
            let gateway = parent.key(&key.namespace);
            if is_read(&gateway.namespace) && !self.reading.snapshot.has(Kind::Gateway, &gateway) {
                let says = "this Gateway does not exist, so that the route is not attached to it";
                results.push(CheckResult::new(Verdict::Failed, "parent", gateway, says));
            }
        }
        results.extend(self.backends(Kind::TlsRoute, key));
        // A condition has those about annotations.
        let notes = self.notes(Kind::TlsRoute, key).filter(|note| note.reason != "InvalidAnnotation");
        results.extend(notes.map(|note| remark(note, note.reason)));
        results
    }

    fn parents(&self, key: &Key, wanted: &RouteStatus) -> Vec<CheckResult> {
        let controller = &*self.options.controller;
        let reported = &self.status(Kind::TlsRoute, key)["parents"];
        let wanted_status = status::route(&Value::Null, Some(wanted), controller, "").unwrap_or_default();
        let entries = wanted_status["parents"].as_array().into_iter().flatten().zip(&wanted.parents);
        let of_entry = |(entry, status): (&Value, &ParentStatus)| {
            let is_it = |reported: &&Value| {
                reported["parentRef"] == entry["parentRef"] && reported["controllerName"] == entry["controllerName"]
            };
            let reported = reported.as_array().into_iter().flatten().find(is_it).unwrap_or(&Value::Null);
            let ParentRef { section_name, port, .. } = &status.parent;
            let section = section_name.as_ref().map_or_else(String::new, |name| format!(", listener {name}"));
            let port = port.map_or_else(String::new, |port| format!(", port {port}"));
            let subject = format!("{}{section}{port}", status.parent.key(&key.namespace));
            let mut results = conditions("parent", &subject, &reported["conditions"], &entry["conditions"]);
            if is_outdated(&reported["conditions"], &entry["conditions"]) {
                results.push(CheckResult::new(Verdict::Failed, "parent", &subject, OUTDATED));
            }
            results
        };
        entries.flat_map(of_entry).collect()
    }

    fn ingress(&self, key: &Key) -> Vec<CheckResult> {
        let mut results = self.addresses(Kind::Ingress, key);
        if results.is_empty() && self.plan.statuses.ingresses.contains(key) {
            results.push(CheckResult::new(Verdict::Failed, "status", "loadBalancer", UNREPORTED));
        }
        results.extend(self.backends(Kind::Ingress, key));
        results.extend(self.notes(Kind::Ingress, key).map(|note| remark(note, note.reason)));
        results
    }

    fn notes(&self, kind: Kind, key: &Key) -> impl Iterator<Item = &Note> {
        self.plan.notes.iter().filter(move |note| note.object.kind == kind && note.object.key == *key)
    }

    /// The endpoints of the backends of an object.
    fn backends(&self, kind: Kind, key: &Key) -> Vec<CheckResult> {
        let routes = self.plan.routing.routes.iter();
        let routes = routes.filter(|route| route.object.kind == kind && route.object.key == *key);
        let mut results = Vec::new();
        let mut backends = BTreeSet::new();
        for route in routes {
            let sum = |weights: &mut dyn Iterator<Item = u32>| weights.map(u64::from).sum::<u64>();
            let all = sum(&mut route.backends.iter().map(|weighted| weighted.weight));
            let invalid = route.backends.iter().filter(|weighted| weighted.backend.is_none());
            let refused = sum(&mut invalid.map(|weighted| weighted.weight));
            let says = match (refused, all) {
                (_, 0) => Some("no backend has a weight, so that all connections are refused".into()),
                (0, _) => None,
                (refused, all) => Some(format!("{refused} of {all} connections are refused, as a backend is invalid")),
            };
            results.extend(says.map(|says| CheckResult::new(Verdict::Failed, "backend", &route.name, says)));
            backends.extend(route.backends.iter().filter_map(|weighted| weighted.backend.as_ref()));
        }
        results.extend(backends.into_iter().map(|backend| {
            let (verdict, says) = match self.plan.endpoints.get(backend).map_or(0, |endpoints| endpoints.serving.len())
            {
                0 => (Verdict::Failed, "the Service has no ready endpoint".into()),
                count => (Verdict::Ok, counted(count, "ready endpoint")),
            };
            CheckResult::new(verdict, "backend", backend, says)
        }));
        results
    }
}

const UNREPORTED: &str = "no replica has reported on this: is `snigate gateway` running with the same options, and has it the \
    rights to write status?";

const OUTDATED: &str = "what was reported is out of date, as the objects do not call for it any more: is `snigate gateway` \
    running with the same options?";

fn conditions(step: &'static str, subject: &str, reported: &Value, wanted: &Value) -> Vec<CheckResult> {
    let problems = problems(reported, wanted);
    if problems.is_empty() {
        let all = reported.as_array().into_iter().flatten().filter(|condition| condition["status"] == "True");
        let names: Vec<&str> = all.filter_map(|condition| condition["type"].as_str()).collect();
        return vec![CheckResult::new(Verdict::Ok, step, subject, names.join(", "))];
    }
    problems.into_iter().map(|says| CheckResult::new(Verdict::Failed, step, subject, says)).collect()
}

/// What is wrong by the conditions of a status, or by those that the objects call for.
fn problems(reported: &Value, wanted: &Value) -> Vec<String> {
    let reported: Vec<&Value> = reported.as_array().into_iter().flatten().collect();
    // That is decided by what was opened.
    let wanted = wanted.as_array().into_iter().flatten().filter(|wanted| wanted["type"] != "Programmed");
    let wanted: Vec<&Value> = wanted.collect();
    let mut problems: Vec<String> = reported.iter().filter_map(|condition| problem(condition)).collect();
    for says in wanted.iter().filter_map(|condition| problem(condition)) {
        if !problems.contains(&says) {
            problems.push(says);
        }
    }
    let generation = |condition: &Value| condition["observedGeneration"].as_i64();
    let is_reported = |wanted: &&Value| {
        reported.iter().any(|reported| reported["type"] == wanted["type"] && generation(reported) >= generation(wanted))
    };
    if !wanted.iter().all(is_reported) {
        problems.push(UNREPORTED.into());
    }
    problems
}

/// Whether a condition is false that the objects do not make so.
fn is_outdated(reported: &Value, wanted: &Value) -> bool {
    let mut wanted = wanted.as_array().into_iter().flatten().filter(|wanted| wanted["status"] == "True");
    let is_false = |reported: &Value, kind: &Value| reported["type"] == *kind && reported["status"] == "False";
    wanted.any(|wanted| reported.as_array().into_iter().flatten().any(|reported| is_false(reported, &wanted["type"])))
}

fn describe_listener(gateway: &Gateway, name: &str, status: &Value) -> String {
    let Some(listener) = gateway.spec.listeners.iter().find(|listener| listener.name == name) else {
        return String::new();
    };
    let hostname = listener.hostname.as_deref().filter(|hostname| !hostname.is_empty());
    let hostname = hostname.map_or_else(String::new, |hostname| format!(" for {hostname}"));
    let routes = counted(status["attachedRoutes"].as_u64().unwrap_or(0), "route");
    format!("port {}{hostname}, {routes}", listener.port)
}

/// What loses to another object, or was never supported, may be intended.
fn remark(note: &Note, subject: impl std::fmt::Display) -> CheckResult {
    let verdict = if matches!(note.reason, "HostnameTaken" | "NotSupported") { Verdict::Note } else { Verdict::Failed };
    CheckResult::new(verdict, "object", subject, &*note.message)
}
