//! What is true of another listener or another machine is not said of this one.

use serde_json::Value;
use tempfile::TempDir;

use crate::support::backend::{closed, free};
use crate::support::network::{FAR, NEAR, Neighbour, alone};
use crate::support::{Router, snigate};

/// The exit code, and what is printed on both outputs.
fn run(command: &str, config: &str, arguments: &[&str]) -> (Option<i32>, String) {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("snigate.yaml");
    std::fs::write(&path, config).unwrap();
    let output = snigate().args([command, "-c"]).arg(path).args(arguments).output().unwrap();
    (output.status.code(), crate::support::all_output(&output))
}

fn doctor(config: &str, arguments: &[&str]) -> Value {
    let (_, told) = run("doctor", config, &[&["--json"], arguments].concat());
    serde_json::from_str(&told).unwrap_or_else(|error| panic!("{error}: {told}"))
}

#[test]
fn a_name_is_checked_at_the_listeners_where_it_leads_to_the_route() {
    let [one, two, upstream] = [closed(), closed(), closed()];
    let config = format!(
        "listen: [\"{one}\", {{name: two, address: \"{two}\"}}]
routes:
  - {{name: deep, sni: \"*.a.localhost\", listener: two, upstream: \"{upstream}\"}}
  - {{name: wide, sni: \"*.localhost\", upstream: \"{upstream}\"}}
"
    );
    let told = doctor(&config, &["q.a.localhost"]);
    let listeners = |route: &Value| -> Vec<Value> {
        let checks = route["checks"].as_array().unwrap().iter();
        checks.filter(|check| check["step"] == "listener").map(|check| check["subject"].clone()).collect()
    };
    let routes = told["routes"].as_array().unwrap().iter();
    let routes: Vec<_> = routes.map(|route| (route["name"].as_str().unwrap(), listeners(route))).collect();
    assert_eq!(routes, [("deep", vec![two.to_string().into()]), ("wide", vec![one.to_string().into()])]);
}

#[test]
fn a_snigate_here_is_not_the_one_elsewhere() {
    let config = format!(
        "listen: 127.0.0.1:0\nadmin: {}\nroutes: [{{sni: a.localhost, upstream: {{endpoints: \"{}\", connect: {{timeout: 100ms, per_try: 100ms}}}}}}]\n",
        free(),
        closed()
    );
    let router = Router::start(&config);
    router.reload("listen: nonsense\n");
    let config = format!("{config}watch: false\n");
    let running = |through: &str| doctor(&config, &["--through", through])["running"][0].clone();
    assert_eq!(running("127.0.0.1:1")["result"], "failed");
    let told = running("192.0.2.1:1");
    let expected = "on this machine, not where --through leads: the running snigate has another configuration";
    assert!(told["result"] == "note" && told["says"].as_str().unwrap().starts_with(expected), "{told}");
}

#[test]
#[ignore = "needs root, unshare and ip"]
fn a_machine_of_the_same_name_is_another_one() {
    let config = |listen: &str| {
        format!(
            "listen: {listen}\nadmin: {{address: 0.0.0.0:9000, allow_remote: true}}\nroutes: [{{sni: a, upstream: \"127.0.0.1:1\"}}]\n"
        )
    };
    let new = config(&format!("{FAR}:6443"));
    let neighbour = Neighbour::new();
    alone(&config("0.0.0.0:443"), &neighbour.link(), |_| {
        let _taken = neighbour.inside(|| std::net::TcpListener::bind((FAR, 6443)).unwrap());
        let elsewhere = neighbour.inside(|| run("plan", &new, &["--admin", &format!("{NEAR}:9000")]));
        let expected =
            format!("  + {FAR}:6443  begins to listen; on this machine it could not: address already in use\n");
        assert!(elsewhere.1.contains(&expected) && elsewhere.0 == Some(0), "{elsewhere:?}");
        let here = run("plan", &config("10.9.0.9:6443"), &["--admin", &format!("{NEAR}:9000")]);
        assert!(here.1.contains("  + 10.9.0.9:6443  cannot be listened at: ") && here.0 == Some(1), "{here:?}");
    });
}
