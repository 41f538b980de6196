//! `snigate gateway` and a cluster: what it watches, serves and reports.

mod doctor;
mod endpoints;
mod kube_api;
mod objects;
mod offline;
mod ownership;
mod replicas;
mod serving;
mod watching;

use std::net::{SocketAddr, TcpStream};
use std::path::Path;

use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use self::kube_api::KubeApi;
use self::objects::{Pod, class, condition, gateway, ingress, namespace, route, service, slice};
use crate::support::backend::free;
use crate::support::client::{End, served};
use crate::support::{Backend, Client, Hello, Router, eventually, snigate};

const NAME: &str = "a.example.com";

/// What a client gets without a route.
fn closed() -> (Vec<u8>, End) {
    (Vec::new(), End::Fin)
}

/// A cluster with a Gateway `edge` at this address, and a route from [`NAME`] to the Service `api`, which is `backend`.
fn cluster(backend: &Backend) -> (KubeApi, SocketAddr) {
    let (api, edge) = (KubeApi::start(), free());
    api.apply_all([
        class(),
        namespace("default"),
        gateway("edge", edge.ip(), &[edge.port()]),
        route("a", NAME, &[("api", 1)]),
        service("api"),
        slice("api", 0, backend.address(), Pod::Ready),
    ]);
    (api, edge)
}

/// A replica of `snigate gateway`.
struct Replica(Router);

impl Replica {
    /// Starts, and waits until its admin listener answers.
    #[track_caller]
    fn start(api: &KubeApi, arguments: &[&str]) -> Self {
        Self::with_token(api, None, arguments)
    }

    #[track_caller]
    fn with_token(api: &KubeApi, token_file: Option<&Path>, arguments: &[&str]) -> Self {
        Self::with_base(api, token_file, "admin: 127.0.0.1:0\n", arguments)
    }

    #[track_caller]
    fn with_base(api: &KubeApi, token_file: Option<&Path>, base: &str, arguments: &[&str]) -> Self {
        let directory = TempDir::new().unwrap();
        let (config, kubeconfig) = (directory.path().join("base.yaml"), directory.path().join("kubeconfig"));
        std::fs::write(&config, base).unwrap();
        std::fs::write(&kubeconfig, api.kubeconfig(token_file.map(|file| file.to_str().unwrap()))).unwrap();
        let mut command = snigate();
        command.arg("gateway").arg("-c").arg(&config).arg("--kubeconfig").arg(&kubeconfig).args(arguments);
        let replica = Self(Router::spawn(command, config, directory));
        replica.0.admin();
        replica
    }

    fn is_ready(&self) -> bool {
        self.0.get("/readyz").0 == 200
    }

    #[track_caller]
    fn ready(self) -> Self {
        eventually("readiness", || self.is_ready());
        self.0.wait("the first state of the cluster", |line| line["message"] == "reloaded");
        self
    }

    /// How many lines with this message there are.
    fn count(&self, message: &str) -> usize {
        self.0.log().iter().filter(|line| line["message"] == message).count()
    }

    fn stop(&mut self) {
        self.0.signal(Signal::TERM);
        assert!(self.0.exit().success());
    }
}

/// What a client of this name gets.
fn ask(edge: SocketAddr, name: &str) -> (Vec<u8>, End) {
    let mut client = Client::send(edge, &Hello::to(name).record());
    client.finish_if_open();
    client.rest()
}

/// Also while nobody listens.
fn is_served(edge: SocketAddr, name: &str) -> bool {
    TcpStream::connect(edge).is_ok() && ask(edge, name) == served()
}

/// A condition of the route's only parent.
fn of_route(api: &KubeApi, name: &str, kind: &str) -> Option<(String, String)> {
    condition(&api.get("tlsroutes", "default", name)?["status"]["parents"][0]["conditions"], kind)
}

fn of_gateway(api: &KubeApi, kind: &str) -> Option<(String, String)> {
    condition(&api.get("gateways", "default", "edge")?["status"]["conditions"], kind)
}

fn truly(reason: &str) -> Option<(String, String)> {
    Some(("True".into(), reason.into()))
}

/// Waits until all is reported.
#[track_caller]
fn reported(api: &KubeApi) {
    eventually("the status of the route", || of_route(api, "a", "Accepted") == truly("Accepted"));
    eventually("the status of the Gateway", || of_gateway(api, "Programmed") == truly("Programmed"));
}

fn holder(api: &KubeApi) -> Option<Value> {
    let lease = api.get("leases", "snigate", "snigate.dev-gateway")?;
    Some(lease["spec"]["holderIdentity"].clone())
}
