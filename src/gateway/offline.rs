//! What objects in files amount to, without a cluster.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::api::{BackendRef, Key, Kind, TlsRoute};
use super::plan::{Applied, Plan, Published, PublishedAddress};
use super::snapshot::Snapshot;
use super::status;
use super::translate::{CONTROLLER, IngressOptions, Options, Publish, translate};

/// The objects of files, and what they amount to.
#[derive(Debug)]
pub(crate) struct Offline {
    pub(crate) snapshot: Snapshot,
    pub(crate) plan: Plan,
    /// Objects that the files do not have, and that are taken for granted.
    pub(crate) assumed: BTreeSet<String>,
    /// How many objects are of other kinds.
    pub(crate) ignored: BTreeMap<String, usize>,
}

/// Translates objects. GatewayClasses, Services and Namespaces that they refer to need not be among them, as long as none
/// is at odds with that.
pub(crate) fn translate_objects(objects: Vec<Value>, ingress: IngressOptions) -> Offline {
    let mut snapshot = Snapshot::default();
    let mut ignored: BTreeMap<String, usize> = BTreeMap::new();
    for object in objects {
        match Kind::of(&object) {
            // What cannot be decoded is in the plan's notes.
            Some(kind) => drop(snapshot.insert(kind, object)),
            None => *ignored.entry(object["kind"].as_str().unwrap_or_default().to_owned()).or_default() += 1,
        }
    }
    let assumed = complete(&mut snapshot);
    let any = PublishedAddress::Hostname("localhost".into());
    let options = Options { publish: Publish::Addresses(vec![any]), ingress: Some(ingress), ..Options::default() };
    let plan = translate(&snapshot, &options, &[]);
    Offline { snapshot, plan, assumed, ignored }
}

/// Adds objects that are referred to but not there.
fn complete(snapshot: &mut Snapshot) -> BTreeSet<String> {
    let mut missing: Vec<(Kind, Value)> = Vec::new();
    let classes: BTreeSet<&str> = snapshot.gateways.values().map(|gateway| &*gateway.spec.gateway_class_name).collect();
    for class in classes.into_iter().filter(|class| !snapshot.classes.contains_key(&Key::new("", *class))) {
        let spec = json!({"controllerName": CONTROLLER});
        missing.push((Kind::GatewayClass, json!({"metadata": {"name": class}, "spec": spec})));
    }
    let mut ports: BTreeMap<Key, BTreeSet<(String, u16)>> = BTreeMap::new();
    for route in snapshot.routes.values() {
        let references = route.spec.rules.iter().flat_map(|rule| &rule.backend_refs);
        ports_of(route, references, &mut ports);
    }
    for ingress in snapshot.ingresses.values() {
        let paths = ingress.spec.rules.iter().filter_map(|rule| rule.http.as_ref()).flat_map(|http| &http.paths);
        for service in paths.filter_map(|path| path.backend.service.as_ref()) {
            let port = match (service.port.number, &service.port.name) {
                (Some(number), _) => (number.to_string(), number),
                // Only the Service knows the number.
                (None, Some(name)) => (name.clone(), 443),
                (None, None) => continue,
            };
            ports.entry(Key::new(&*ingress.metadata.namespace, &*service.name)).or_default().insert(port);
        }
    }
    for (Key { namespace, name }, ports) in ports {
        let ports: Vec<Value> = ports.iter().map(|(name, port)| json!({"name": name, "port": port})).collect();
        let metadata = json!({"namespace": namespace, "name": name});
        missing.push((Kind::Service, json!({"metadata": metadata, "spec": {"ports": ports}})));
    }
    missing.retain(|(kind, object)| *kind != Kind::Service || !snapshot.has(Kind::Service, &key_of(object)));
    let listeners = snapshot.gateways.values().flat_map(|gateway| &gateway.spec.listeners);
    let allowed = listeners.filter_map(|listener| listener.allowed_routes.as_ref()?.namespaces.as_ref());
    let selectors = allowed.filter_map(|namespaces| namespaces.selector.as_ref());
    let selected: BTreeMap<&String, &String> = selectors.flat_map(|selector| &selector.match_labels).collect();
    let namespaces: BTreeSet<&String> = snapshot.routes.keys().map(|key| &key.namespace).collect();
    for namespace in namespaces {
        let mut labels = json!(selected);
        labels["kubernetes.io/metadata.name"] = json!(namespace);
        let object = json!({"metadata": {"name": namespace, "labels": labels}});
        if !snapshot.has(Kind::Namespace, &key_of(&object)) {
            missing.push((Kind::Namespace, object));
        }
    }
    let mut assumed = BTreeSet::new();
    for (kind, object) in missing {
        let labels = object["metadata"]["labels"].as_object().map(|labels| labels.keys().map(|key| &**key).collect());
        let labels: Vec<&str> = labels.unwrap_or_default();
        match (kind, &labels[..]) {
            // All have this one.
            (Kind::Namespace, [_]) => {}
            (Kind::Namespace, labels) => {
                assumed.insert(format!("{kind} {}, with the labels {}", key_of(&object), labels.join(", ")));
            }
            _ => drop(assumed.insert(format!("{kind} {}", key_of(&object)))),
        }
        let _ = snapshot.insert(kind, object);
    }
    assumed
}

fn key_of(object: &Value) -> Key {
    let field = |name: &str| object["metadata"][name].as_str().unwrap_or_default();
    Key::new(field("namespace"), field("name"))
}

fn ports_of<'r>(
    route: &TlsRoute,
    references: impl Iterator<Item = &'r BackendRef>,
    ports: &mut BTreeMap<Key, BTreeSet<(String, u16)>>,
) {
    for BackendRef { group, kind, namespace, name, port, weight: _ } in references {
        let is_service =
            group.as_deref().is_none_or(str::is_empty) && kind.as_deref().is_none_or(|kind| kind == "Service");
        if let (true, Some(port)) = (is_service, port) {
            let namespace = namespace.as_deref().unwrap_or(&route.metadata.namespace);
            ports.entry(Key::new(namespace, &**name)).or_default().insert((port.to_string(), *port));
        }
    }
}

impl Offline {
    /// What is wrong, in words: conditions that are not as they should be, and notes.
    pub(crate) fn problems(&self) -> Vec<String> {
        let Plan { statuses, notes, .. } = &self.plan;
        let mut problems = Vec::new();
        let mut add = |about: String, conditions: &Value| {
            let conditions = conditions.as_array().into_iter().flatten();
            // Nothing is listened on here.
            let of_objects = conditions.filter(|condition| condition["type"] != "Programmed");
            problems.extend(of_objects.filter_map(status::problem).map(|problem| format!("{about}: {problem}")));
        };
        for (key, wanted) in &statuses.classes {
            let status = status::class(&Value::Null, wanted, "").unwrap_or_default();
            add(format!("GatewayClass {key}"), &status["conditions"]);
        }
        for (key, wanted) in &statuses.gateways {
            let published = Published::default();
            let status = status::gateway(&Value::Null, wanted, &published, &Applied::default(), "").unwrap_or_default();
            add(format!("Gateway {key}"), &status["conditions"]);
            for listener in status["listeners"].as_array().into_iter().flatten() {
                let name = listener["name"].as_str().unwrap_or_default();
                add(format!("Gateway {key}, listener {name}"), &listener["conditions"]);
            }
        }
        for (key, wanted) in &statuses.routes {
            let status = status::route(&Value::Null, Some(wanted), CONTROLLER, "").unwrap_or_default();
            for parent in status["parents"].as_array().into_iter().flatten() {
                let gateway = parent["parentRef"]["name"].as_str().unwrap_or_default();
                add(format!("TLSRoute {key}, at Gateway {gateway}"), &parent["conditions"]);
            }
        }
        for key in self.snapshot.routes.keys().filter(|key| !statuses.routes.contains_key(key)) {
            problems.push(format!("TLSRoute {key}: none of its parents is a Gateway in these files"));
        }
        let reported = |reason: &str| reason == "InvalidAnnotation" && !statuses.routes.is_empty();
        for note in notes.iter().filter(|note| note.object.kind != Kind::TlsRoute || !reported(note.reason)) {
            problems.push(format!("{}: {}: {}", note.object, note.reason, note.message));
        }
        problems
    }
}
