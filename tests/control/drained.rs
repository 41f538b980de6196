//! Endpoints that an operator has taken out of service.

use std::net::SocketAddr;

use serde_json::Value;

use super::Operated;
use crate::lifecycle::hand_over::{connect, works};
use crate::lifecycle::upgrade::{install, linked, upgrade};
use crate::support::client::{End, alert};
use crate::support::{Backend, Client, Hello, eventually, snigate};

const NAME: &str = "a.example";

fn config(upstream: &str) -> String {
    format!("listen: 127.0.0.1:0\nadmin: 127.0.0.1:0\nroutes:\n  - sni: {NAME}\n    upstream: {upstream}\n")
}

fn of(endpoints: &[&Backend]) -> String {
    let endpoints: Vec<String> = endpoints.iter().map(|endpoint| format!("\"{}\"", endpoint.address())).collect();
    format!("{{endpoints: [{}], balance: round_robin}}", endpoints.join(", "))
}

fn open(address: SocketAddr) -> Client {
    let mut client = Client::send(address, &Hello::to(NAME).record());
    client.read(1);
    client
}

fn states(operated: &Operated) -> Vec<(String, String)> {
    let listed: Value = serde_json::from_str(&operated.says(&["endpoints", "--json"])).unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    listed.as_array().unwrap().iter().map(|one| (text(&one["state"]), text(&one["health"]))).collect()
}

fn pair(state: &str, health: &str) -> (String, String) {
    (state.into(), health.into())
}

#[test]
fn h27_a_drained_endpoint_gets_no_new_connections_until_it_is_resumed() {
    let (one, two) = (Backend::echo(), Backend::echo());
    let operated = Operated::start(&config(&of(&[&one, &two])));
    let address = operated.router.address();
    let mut before = [open(address), open(address)];
    assert_eq!((one.accepted(), two.accepted()), (1, 1));
    let (drained, name) = (one.address().to_string(), NAME);
    assert_eq!(
        operated.says(&["drain", name, &drained]),
        format!("{drained} of route {name}: drained; 1 open connection stays; 1 endpoint of the route is in service\n")
    );
    let _more: Vec<Client> = (0..4).map(|_| open(address)).collect();
    assert_eq!((one.accepted(), two.accepted()), (1, 5));
    let rest = Hello::to(NAME).record().len() - 1;
    for client in &mut before {
        client.write(b"ping");
        assert!(client.read(rest + 4).ends_with(b"ping"), "open connections stay");
    }

    assert_eq!(states(&operated), [pair("drained", "ready"), pair("ready", "ready")]);
    let state = |state: &str| {
        operated
            .router
            .metric(&format!("snigate_endpoint_state{{route=\"{NAME}\",endpoint=\"{drained}\",state=\"{state}\"}}"))
    };
    assert_eq!((state("drained"), state("ready")), (1.0, 0.0));
    let line = operated.router.wait("what was done", |line| line["verb"] == "drain");
    assert_eq!((&line["route"], &line["endpoint"]), (&NAME.into(), &drained.clone().into()));
    assert!(line["operator.user"].is_u64() && line["operator.process"].is_u64(), "{line}");

    assert!(operated.says(&["drain", name, &drained]).contains("was drained before"));
    assert!(operated.says(&["resume", name, &drained]).contains("resumed; 2 endpoints"));
    assert!(operated.says(&["resume", name, &drained]).contains("was not drained"));
    let _more: Vec<Client> = (0..4).map(|_| open(address)).collect();
    assert_eq!((one.accepted(), two.accepted()), (3, 7));
}

#[test]
fn h27_what_is_drained_stays_so_over_reloads_and_upgrades() {
    let (one, two) = (Backend::echo(), Backend::echo());
    let (operated, _) = Operated::starting(&config(&of(&[&one, &two])), linked);
    let router = &operated.router;
    let address = router.address();
    let drained = one.address().to_string();
    operated.says(&["drain", NAME, &drained]);
    // The route changes, loses the endpoint, and gets it back.
    for upstream in [of(&[&two]), of(&[&one, &two])] {
        assert_eq!(router.reload(&operated.with_socket(&config(&upstream)))["message"], "reloaded");
        drop(open(address));
    }
    assert_eq!(one.accepted(), 0);
    upgrade(router);
    eventually("the new process answers", || operated.ctl(&["routes"]).status.success());
    drop(open(address));
    assert_eq!((one.accepted(), two.accepted()), (0, 3));
    assert_eq!(states(&operated)[0].0, "drained");
    operated.says(&["resume", NAME, &drained]);
    let _both = [open(address), open(address)];
    assert_eq!(one.accepted(), 1);
}

#[test]
fn h27_backups_serve_while_the_others_are_drained_and_without_any_clients_are_refused() {
    let (one, backup) = (Backend::echo(), Backend::echo());
    let upstream =
        format!("{{endpoints: [\"{}\", {{address: \"{}\", backup: true}}]}}", one.address(), backup.address());
    let operated = Operated::start(&config(&upstream));
    let address = operated.router.address();
    operated.says(&["drain", NAME, &one.address().to_string()]);
    operated.router.wait("the backup serves", |line| {
        line["message"] == "no endpoint is ready but backups; new connections go to backups"
    });
    drop(open(address));
    assert_eq!((one.accepted(), backup.accepted()), (0, 1));

    assert!(operated.says(&["drain", NAME]).contains("NO endpoint of the route is in service"));
    let mut refused = Client::send(address, &Hello::to(NAME).record());
    assert_eq!(refused.rest(), (alert(80), End::Fin));
    let told = operated.router.account_of(refused.address());
    assert_eq!(told["outcome"], "no_endpoint");
    assert!(told["reason"].as_str().unwrap().ends_with(": drained by an operator"), "{told}");
    let failed = operated.fails(&["resume", NAME, &one.address().to_string()]);
    assert!(failed.contains("the whole route is drained"), "{failed}");
    operated.says(&["resume", NAME]);
    drop(open(address));
    assert_eq!(one.accepted(), 1);
}

#[test]
fn h27_what_does_not_exist_cannot_be_drained() {
    let backend = Backend::echo();
    let operated = Operated::start(&config(&of(&[&backend])));
    assert!(operated.fails(&["drain", "b"]).contains("no route is named `b`"));
    let unknown = operated.fails(&["drain", NAME, "127.0.0.1:1"]);
    assert!(unknown.contains(&format!("has no endpoint 127.0.0.1:1; it has {}", backend.address())), "{unknown}");
    assert!(operated.fails(&["resume", "b"]).contains("no route is named `b`"));
    operated.says(&["drain", NAME]);
    // It can be resumed although its route is gone.
    operated.router.reload(&operated.with_socket(&config(&of(&[&backend])).replace(NAME, "c")));
    assert!(operated.says(&["resume", NAME]).contains("resumed"));
}

#[test]
fn h27_an_upgrade_that_fails_leaves_orders_working() {
    let (backend, held) = Backend::held();
    let (operated, binary) = Operated::starting(&config(&of(&[&backend])), linked);
    let (mut client, mut upstream) = connect(&operated.router, &held);
    install(&binary, "#!/bin/sh\nexit 3\n");
    operated.router.signal(rustix::process::Signal::USR2);
    operated.router.wait("it fails", |line| line["message"] == "upgrade failed; this process continues to serve");
    operated.says(&["drain", NAME]);
    works(&mut client, &mut upstream);
}

#[test]
fn h27_plan_and_doctor_show_what_is_drained() {
    let backend = Backend::echo();
    let operated = Operated::start(&config(&of(&[&backend])));
    let (router, drained) = (&operated.router, backend.address().to_string());
    operated.says(&["drain", NAME, &drained]);
    let admin = router.admin().to_string();
    let plan = snigate().arg("plan").arg("-c").arg(&router.config).args(["--admin", &admin]).output().unwrap();
    let told = String::from_utf8(plan.stdout).unwrap();
    assert!(told.ends_with(&format!("\ndrained by an operator, also after the reload\n    {drained} of {NAME}\n\nconnections that would be closed: 0\n")), "{told}");

    // With the ports that the kernel has chosen.
    let text = std::fs::read_to_string(&router.config).unwrap();
    let text = text.replacen("127.0.0.1:0", &router.address().to_string(), 1).replace("127.0.0.1:0", &admin);
    let file = router.config.with_file_name("bound.yaml");
    std::fs::write(&file, text).unwrap();
    let doctor = snigate().arg("doctor").arg("--json").arg("-c").arg(&file).output().unwrap();
    let told = String::from_utf8(doctor.stdout).unwrap();
    assert!(told.contains(&format!("snigate ctl resume '{NAME}' {drained}")), "{told}");
}
