//! A stand-in for the API server of a cluster: lists in pages, watches, bookmarks, optimistic locks, and every way to be
//! unwell.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

use crate::support::backend::reset;

/// Group and version, plural and kind of what it has.
const RESOURCES: [(&str, &str, &str); 10] = [
    ("gateway.networking.k8s.io/v1", "gatewayclasses", "GatewayClass"),
    ("gateway.networking.k8s.io/v1", "gateways", "Gateway"),
    ("gateway.networking.k8s.io/v1", "tlsroutes", "TLSRoute"),
    ("gateway.networking.k8s.io/v1", "referencegrants", "ReferenceGrant"),
    ("v1", "services", "Service"),
    ("v1", "namespaces", "Namespace"),
    ("discovery.k8s.io/v1", "endpointslices", "EndpointSlice"),
    ("networking.k8s.io/v1", "ingresses", "Ingress"),
    ("coordination.k8s.io/v1", "leases", "Lease"),
    ("events.k8s.io/v1", "events", "Event"),
];

/// One address of it.
#[derive(Clone)]
pub struct KubeApi {
    address: SocketAddr,
    /// Accepts, and resets at once.
    is_away: Arc<AtomicBool>,
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    version: u64,
    /// By plural, namespace and name.
    objects: BTreeMap<(String, String, String), Value>,
    /// What watches are told, by version.
    events: Vec<(u64, String, Value)>,
    /// Versions up to this one are forgotten.
    compacted: u64,
    /// API versions and plurals that it does not have.
    missing: BTreeSet<(String, String)>,
    /// Plurals that nobody may list.
    forbidden: BTreeSet<String>,
    /// `None`: everybody may.
    token: Option<String>,
    requests: Vec<Request>,
    /// Watches that were begun before say nothing any more.
    stalled: u64,
    /// Watches that were begun before end.
    cut: u64,
    watches: u64,
    bookmarks: u64,
    /// How many writes of a status fail because others were faster.
    conflicts: u32,
}

/// What it was asked for.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: String,
    /// With the query.
    pub path: String,
    pub accept: String,
    pub status: u16,
}

impl Request {
    pub fn is_write(&self) -> bool {
        self.method != "GET"
    }

    pub fn is_status_write(&self) -> bool {
        self.method == "PATCH" && self.path.split('?').next().unwrap().ends_with("/status")
    }

    fn is_watch(&self) -> bool {
        self.path.contains("watch=true")
    }
}

impl KubeApi {
    pub fn start() -> Self {
        Self::serving(Arc::new(Shared { state: Mutex::default(), changed: Condvar::new() }))
    }

    /// Another address of the same cluster.
    pub fn entrance(&self) -> Self {
        Self::serving(Arc::clone(&self.shared))
    }

    fn serving(shared: Arc<Shared>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = Self { address, is_away: Arc::default(), shared };
        let serving = server.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (server, stream) = (serving.clone(), stream.unwrap());
                std::thread::spawn(move || server.serve(stream));
            }
        });
        server
    }

    /// A kubeconfig with this token file, if any.
    pub fn kubeconfig(&self, token_file: Option<&str>) -> String {
        let user = token_file.map_or_else(|| "{}".into(), |file| format!("{{tokenFile: {file}}}"));
        format!(
            "apiVersion: v1
kind: Config
current-context: test
contexts: [{{name: test, context: {{cluster: test, user: test, namespace: snigate}}}}]
clusters: [{{name: test, cluster: {{server: \"http://{}\"}}}}]
users: [{{name: test, user: {user}}}]
",
            self.address
        )
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let result = change(&mut self.state());
        self.shared.changed.notify_all();
        result
    }

    /// Adds an object, or replaces its spec; its status stays.
    pub fn apply(&self, object: Value) {
        self.change(|state| state.apply(object));
    }

    /// All of these at once.
    pub fn apply_all(&self, objects: impl IntoIterator<Item = Value>) {
        self.change(|state| objects.into_iter().for_each(|object| state.apply(object)));
    }

    pub fn delete(&self, plural: &str, namespace: &str, name: &str) {
        self.change(|state| {
            let mut object = state.objects.remove(&(plural.into(), namespace.into(), name.into())).unwrap();
            state.version += 1;
            object["metadata"]["resourceVersion"] = state.version.to_string().into();
            state.events.push((state.version, plural.into(), json!({"type": "DELETED", "object": object})));
        });
    }

    pub fn get(&self, plural: &str, namespace: &str, name: &str) -> Option<Value> {
        self.state().objects.get(&(plural.into(), namespace.into(), name.into())).cloned()
    }

    pub fn all(&self, plural: &str) -> Vec<Value> {
        self.state()
            .objects
            .iter()
            .filter(|((other, _, _), _)| other == plural)
            .map(|(_, object)| object.clone())
            .collect()
    }

    /// It does not have these resources from now on, such as `("gateway.networking.k8s.io/v1", "tlsroutes")`.
    pub fn lack(&self, resources: &[(&str, &str)]) {
        let missing = resources.iter().map(|(version, plural)| ((*version).into(), (*plural).into())).collect();
        self.change(|state| state.missing = missing);
    }

    /// Nobody may list these plurals from now on.
    pub fn forbid(&self, plurals: &[&str]) {
        self.change(|state| state.forbidden = plurals.iter().map(|plural| (*plural).into()).collect());
    }

    /// Wants this token from now on, and ends all watches.
    pub fn demand(&self, token: &str) {
        self.change(|state| {
            state.token = Some(token.into());
            state.cut = state.watches;
        });
    }

    /// Resets all connections to this address, until it is back. (All watches end.)
    pub fn go_away(&self) {
        self.is_away.store(true, SeqCst);
        self.cut_watches();
    }

    pub fn come_back(&self) {
        self.is_away.store(false, SeqCst);
    }

    /// Ends all watches.
    pub fn cut_watches(&self) {
        self.change(|state| state.cut = state.watches);
    }

    /// Watches that are under way say nothing any more, and do not end either.
    pub fn stall_watches(&self) {
        self.change(|state| state.stalled = state.watches);
    }

    /// Sends a bookmark to all watches.
    pub fn bookmark(&self) {
        self.change(|state| {
            state.version += 1;
            state.bookmarks = state.version;
        });
    }

    /// Forgets what has happened so far, so that watches cannot go on from there.
    pub fn compact(&self) {
        self.change(|state| {
            state.version += 1;
            state.compacted = state.version;
            state.cut = state.watches;
        });
    }

    /// So many writes of a status will fail, because somebody else is faster.
    pub fn conflict(&self, count: u32) {
        self.change(|state| state.conflicts = count);
    }

    pub fn requests(&self) -> Vec<Request> {
        self.state().requests.clone()
    }

    pub fn status_writes(&self) -> usize {
        self.requests().iter().filter(|request| request.is_status_write()).count()
    }

    /// Lists and watches of this plural, so far.
    pub fn reads(&self, plural: &str) -> (usize, usize) {
        let requests = self.requests();
        let of_it = requests.iter().filter(|request| {
            let path = request.path.split('?').next().unwrap();
            request.method == "GET" && path.ends_with(&format!("/{plural}"))
        });
        let (watches, lists): (Vec<_>, Vec<_>) = of_it.partition(|request| request.is_watch());
        (lists.len(), watches.len())
    }

    fn serve(&self, stream: TcpStream) {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut stream = stream;
        while let Some(Received { method, path, token, accept, body }) = Received::read(&mut reader) {
            if self.is_away.load(SeqCst) {
                return reset(stream);
            }
            let (method, target) = (method.as_str(), Target::parse(&path));
            let is_watch = method == "GET" && path.contains("watch=true");
            // At once: who sees what a request has changed can count the request.
            let (status, answer) = self.change(|state| {
                let (status, answer) = state.answer(method, &target, token.as_deref(), &body);
                state.requests.push(Request { method: method.into(), path: path.clone(), accept, status });
                (status, answer)
            });
            if is_watch && status == 200 {
                self.watch(stream, &target);
                return;
            }
            let text = answer.to_string();
            let response = format!(
                "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{text}",
                text.len()
            );
            if stream.write_all(response.as_bytes()).is_err() {
                return;
            }
        }
    }

    /// Sends events until the watch ends.
    fn watch(&self, mut stream: TcpStream, target: &Target) {
        let seconds = target.query("timeoutSeconds").map_or(300, |seconds| seconds.parse().unwrap());
        let deadline = Instant::now() + Duration::from_secs(seconds);
        let mut version: u64 = target.query("resourceVersion").unwrap().parse().unwrap();
        let number = self.change(|state| {
            state.watches += 1;
            state.watches
        });
        let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n";
        if stream.write_all(head.as_bytes()).is_err() {
            return;
        }
        loop {
            let mut state = self.state();
            let events: Vec<Value> = loop {
                if state.cut >= number {
                    drop(state);
                    return reset(stream);
                }
                if state.compacted > version {
                    let gone = status(410, "Expired", "too old resource version");
                    break vec![json!({"type": "ERROR", "object": gone})];
                }
                let is_stalled = state.stalled >= number;
                let mut events: Vec<Value> = Vec::new();
                if !is_stalled {
                    let new = state.events.iter().filter(|(of, plural, object)| {
                        *of > version && *plural == target.plural && target.has(&object["object"])
                    });
                    events.extend(new.map(|(_, _, event)| event.clone()));
                    if state.bookmarks > version {
                        let metadata = json!({"resourceVersion": state.bookmarks.to_string()});
                        let (api_version, kind) = target.kind();
                        let object = json!({"apiVersion": api_version, "kind": kind, "metadata": metadata});
                        events.push(json!({"type": "BOOKMARK", "object": object}));
                    }
                    version = state.version;
                }
                let left = deadline.saturating_duration_since(Instant::now());
                if !events.is_empty() {
                    break events;
                }
                if left.is_zero() && !is_stalled {
                    drop(state);
                    let _ = stream.write_all(b"0\r\n\r\n");
                    return;
                }
                let wait = if is_stalled { Duration::from_secs(300) } else { left };
                state = self.shared.changed.wait_timeout(state, wait).unwrap_or_else(PoisonError::into_inner).0;
            };
            drop(state);
            for event in events {
                let line = format!("{event}\n");
                if write!(stream, "{:x}\r\n{line}\r\n", line.len()).is_err() {
                    return;
                }
                if event["type"] == "ERROR" {
                    let _ = stream.write_all(b"0\r\n\r\n");
                    return;
                }
            }
        }
    }
}

impl State {
    fn apply(&mut self, mut object: Value) {
        let kind = object["kind"].as_str().unwrap();
        let plural = RESOURCES.iter().find(|(_, _, other)| *other == kind).unwrap().1.to_owned();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let key = (plural, text(&object["metadata"]["namespace"]), text(&object["metadata"]["name"]));
        let before = self.objects.get(&key);
        let generation = before.map_or(0, |before| before["metadata"]["generation"].as_i64().unwrap());
        let is_new_spec = before.is_none_or(|before| before["spec"] != object["spec"]);
        object["metadata"]["generation"] = (generation + i64::from(is_new_spec)).into();
        if let Some(before) = before {
            for field in ["uid", "creationTimestamp"] {
                object["metadata"][field] = before["metadata"][field].clone();
            }
            if object.get("status").is_none() && before.get("status").is_some() {
                object["status"] = before["status"].clone();
            }
            note_manager(&mut object, before, "kubectl");
        } else {
            object["metadata"]["uid"] = format!("uid-{}", self.version + 1).into();
            let time = format!("2026-01-01T00:{:02}:{:02}Z", self.version / 60 % 60, self.version % 60);
            object["metadata"]["creationTimestamp"] = time.into();
            note_manager(&mut object, &Value::Null, "kubectl");
        }
        self.put(key, object);
    }

    fn put(&mut self, key: (String, String, String), mut object: Value) -> Value {
        self.version += 1;
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        let change = if self.objects.contains_key(&key) { "MODIFIED" } else { "ADDED" };
        self.events.push((self.version, key.0.clone(), json!({"type": change, "object": object})));
        self.objects.insert(key, object.clone());
        object
    }

    fn answer(&mut self, method: &str, target: &Target, token: Option<&str>, body: &Value) -> (u16, Value) {
        if self.token.is_some() && self.token.as_deref() != token {
            return (401, status(401, "Unauthorized", "Unauthorized"));
        }
        if self.forbidden.contains(&target.plural) {
            return (403, status(403, "Forbidden", "forbidden"));
        }
        let is_known =
            RESOURCES.iter().any(|(version, plural, _)| *version == target.version && *plural == target.plural);
        if !is_known || self.missing.contains(&(target.version.clone(), target.plural.clone())) {
            return (404, status(404, "NotFound", "the server could not find the requested resource"));
        }
        let Some(name) = &target.name else {
            return match method {
                "GET" if target.query("watch").is_some() => (200, Value::Null),
                "GET" => self.list(target),
                "POST" => self.create(target, body),
                _ => (405, status(405, "MethodNotAllowed", method)),
            };
        };
        let key = (target.plural.clone(), target.namespace.clone(), name.clone());
        let Some(object) = self.objects.get(&key).cloned() else {
            return (404, status(404, "NotFound", "not found"));
        };
        let asked = &body["metadata"]["resourceVersion"];
        let is_outdated = asked.is_string() && *asked != object["metadata"]["resourceVersion"];
        let conflict = (409, status(409, "Conflict", "the object has been modified"));
        match method {
            "GET" => (200, object),
            "PUT" | "PATCH" if is_outdated => conflict,
            "PUT" => (200, self.put(key, body.clone())),
            "PATCH" if target.is_status => {
                if self.conflicts > 0 {
                    self.conflicts -= 1;
                    self.put(key, object);
                    return conflict;
                }
                let mut changed = object.clone();
                merge(&mut changed["status"], &body["status"]);
                note_manager(
                    &mut changed,
                    &object,
                    &target.query("fieldManager").unwrap_or("unknown").replace("%2F", "/"),
                );
                (200, self.put(key, changed))
            }
            _ => (405, status(405, "MethodNotAllowed", method)),
        }
    }

    fn list(&self, target: &Target) -> (u16, Value) {
        let all = self.objects.iter().filter(|((plural, _, _), object)| *plural == target.plural && target.has(object));
        let all: Vec<&Value> = all.map(|(_, object)| object).collect();
        let from: usize = match target.query("continue").map(|token| token.split_once('-').unwrap()) {
            // Pages are of one version.
            Some((version, _)) if version.parse::<u64>().unwrap() < self.compacted => {
                return (410, status(410, "Expired", "the continue token is too old"));
            }
            Some((_, from)) => from.parse().unwrap(),
            None => 0,
        };
        let limit: usize = target.query("limit").map_or(usize::MAX, |limit| limit.parse().unwrap());
        let page: Vec<&Value> = all.iter().skip(from).take(limit).copied().collect();
        let rest = all.len() - from - page.len();
        let next = if rest > 0 { format!("{}-{}", self.version, from + page.len()) } else { String::new() };
        let metadata = json!({"resourceVersion": self.version.to_string(), "continue": next});
        let (api_version, kind) = target.kind();
        (200, json!({"apiVersion": api_version, "kind": format!("{kind}List"), "metadata": metadata, "items": page}))
    }

    fn create(&mut self, target: &Target, body: &Value) -> (u16, Value) {
        let name = body["metadata"]["name"].as_str().unwrap().to_owned();
        let key = (target.plural.clone(), target.namespace.clone(), name);
        if self.objects.contains_key(&key) {
            return (409, status(409, "AlreadyExists", "it exists"));
        }
        let mut object = body.clone();
        object["metadata"]["namespace"] = target.namespace.clone().into();
        (201, self.put(key, object))
    }
}

/// What a request is about.
struct Target {
    /// Group and version.
    version: String,
    plural: String,
    namespace: String,
    name: Option<String>,
    is_status: bool,
    query: Vec<(String, String)>,
}

impl Target {
    fn parse(path: &str) -> Self {
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        let (version, rest) = match parts[..] {
            ["api", version, ..] => (version.to_owned(), &parts[2..]),
            ["apis", group, version, ..] => (format!("{group}/{version}"), &parts[3..]),
            _ => (String::new(), &parts[..]),
        };
        let (namespace, rest) = match rest {
            ["namespaces", namespace, rest @ ..] if !rest.is_empty() => (*namespace, rest),
            rest => ("", rest),
        };
        let pair = |pair: &str| {
            let (key, value) = pair.split_once('=').unwrap();
            (key.to_owned(), value.to_owned())
        };
        Self {
            version,
            plural: rest.first().copied().unwrap_or_default().to_owned(),
            namespace: namespace.into(),
            name: rest.get(1).map(|name| (*name).to_owned()),
            is_status: rest.get(2) == Some(&"status"),
            query: query.split('&').filter(|pair| pair.contains('=')).map(pair).collect(),
        }
    }

    fn query(&self, key: &str) -> Option<&str> {
        self.query.iter().find(|(other, _)| other == key).map(|(_, value)| value.as_str())
    }

    fn has(&self, object: &Value) -> bool {
        self.namespace.is_empty() || object["metadata"]["namespace"] == self.namespace
    }

    fn kind(&self) -> (&str, &'static str) {
        let kind = RESOURCES.iter().find(|(_, plural, _)| *plural == self.plural).unwrap().2;
        (&self.version, kind)
    }
}

fn status(code: u16, reason: &str, message: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Failure", "code": code, "reason": reason, "message": message})
}

/// Notes who has set the addresses of an Ingress, which are one field.
fn note_manager(object: &mut Value, before: &Value, manager: &str) {
    let addresses = "/status/loadBalancer/ingress";
    object["metadata"]["managedFields"] = match object.pointer(addresses) {
        None => json!([]),
        same if same == before.pointer(addresses) => before["metadata"]["managedFields"].clone(),
        Some(_) => json!([{
            "manager": manager, "operation": "Update", "apiVersion": "networking.k8s.io/v1", "subresource": "status",
            "fieldsType": "FieldsV1", "fieldsV1": {"f:status": {"f:loadBalancer": {"f:ingress": {}}}},
        }]),
    };
}

/// RFC 7386.
fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let target = target.as_object_mut().unwrap();
    for (key, value) in patch {
        if value.is_null() {
            target.remove(key);
        } else {
            merge(target.entry(key).or_insert(Value::Null), value);
        }
    }
}

struct Received {
    method: String,
    path: String,
    /// Of the bearer.
    token: Option<String>,
    accept: String,
    body: Value,
}

impl Received {
    /// The next request of a connection.
    fn read(reader: &mut BufReader<TcpStream>) -> Option<Self> {
        let line = read_line(reader)?;
        let mut words = line.split(' ');
        let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
        let (mut length, mut token, mut accept) = (0, None, String::new());
        loop {
            let line = read_line(reader)?;
            if line.is_empty() {
                break;
            }
            let (name, value) = line.split_once(": ")?;
            match name.to_ascii_lowercase().as_str() {
                "content-length" => length = value.parse().ok()?,
                "authorization" => token = value.strip_prefix("Bearer ").map(str::to_owned),
                "accept" => accept = value.into(),
                _ => {}
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).ok()?;
        Some(Self { method, path, token, accept, body: serde_json::from_slice(&body).unwrap_or_default() })
    }
}

fn read_line(reader: &mut BufReader<TcpStream>) -> Option<String> {
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|length| *length > 0)?;
    Some(line.trim_end().to_owned())
}
