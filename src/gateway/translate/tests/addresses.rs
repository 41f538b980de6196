use super::*;
use crate::gateway::plan::PublishedAddress;

fn with_addresses(name: &str, addresses: Value) -> Value {
    let mut gateway = gateway(name, &["tls 443"]);
    gateway["spec"]["addresses"] = addresses;
    gateway
}

/// Conditions and addresses of the Gateway `ns/gw`.
fn outcome(plan: &Plan) -> (Vec<String>, Value) {
    let status = gateway_status(plan, "ns/gw");
    (reasons(&status["conditions"]), status["addresses"].clone())
}

const PROGRAMMED: [&str; 2] = ["Accepted True Accepted", "Programmed True Programmed"];

#[test]
fn without_addresses_all_of_the_machine_are_listened_on() {
    for addresses in [json!([]), json!([{"type": "IPAddress"}])] {
        let plan = plan(&[class(), with_addresses("ns/gw", addresses)]);
        let (reasons, addresses) = outcome(&plan);
        assert_eq!(reasons, PROGRAMMED);
        assert_eq!(addresses, json!([{"type": "IPAddress", "value": "192.0.2.1"}]));
        assert_eq!(plan.routing.listeners, [EVERYWHERE.parse().unwrap()]);
    }
}

#[test]
fn requested_addresses_are_listened_on_one_by_one() {
    let addresses = json!([{"type": "IPAddress", "value": "192.0.2.1"}, {"value": "2001:db8::1"}]);
    let plan = plan(&[class(), with_addresses("ns/gw", addresses)]);
    assert_eq!(outcome(&plan).0, PROGRAMMED);
    let listeners: Vec<String> = plan.routing.listeners.iter().map(ToString::to_string).collect();
    assert_eq!(listeners, ["192.0.2.1:443", "[2001:db8::1]:443"]);

    let failed = [("[2001:db8::1]:443".parse().unwrap(), "cannot listen".to_owned())].into();
    let wanted = &plan.statuses.gateways[&Key::new("ns", "gw")];
    let applied = Applied { failed, ..applied() };
    let status = status::gateway(&Value::Null, wanted, &plan.statuses.published, &applied, NOW).unwrap();
    assert_eq!(reasons(&status["conditions"]), ["Accepted True Accepted", "Programmed False AddressNotUsable"]);
    assert_eq!(status["addresses"], json!([{"type": "IPAddress", "value": "192.0.2.1"}]));
    assert_eq!(reasons(&status["listeners"][0]["conditions"])[3], "Programmed True Programmed", "at the other one");
}

#[test]
fn other_types_of_addresses_are_not_supported() {
    for address in [
        json!({"type": "Hostname", "value": "a.example.com"}),
        json!({"type": "test/fake-invalid-type", "value": "x"}),
        json!({"type": "IPAddress", "value": "x"}),
    ] {
        let plan = plan(&[class(), with_addresses("ns/gw", json!([address, {"value": "192.0.2.1"}]))]);
        assert_eq!(outcome(&plan).0, ["Accepted False UnsupportedAddress", "Programmed False Invalid"]);
        assert!(plan.routing.listeners.is_empty());
    }
}

#[test]
fn infrastructure_parameters_are_not_supported() {
    let mut gateway = gateway("ns/gw", &["tls 443"]);
    gateway["spec"]["infrastructure"] = json!({"labels": {"a": "b"}});
    assert_eq!(outcome(&plan(&[class(), gateway.clone()])).0, PROGRAMMED);
    gateway["spec"]["infrastructure"]["parametersRef"] = json!({"group": "", "kind": "ConfigMap", "name": "x"});
    let plan = plan(&[class(), gateway]);
    assert_eq!(outcome(&plan).0, ["Accepted False InvalidParameters", "Programmed False Invalid"]);
    assert_eq!(listener_reasons(&plan, "ns/gw", "tls")[3], "Programmed False Invalid");
}

#[test]
fn a_load_balancer_has_the_addresses() {
    let options = Options { publish: Publish::Service(Key::new("snigate", "edge")), ..Options::default() };
    let mut balancer = object("v1", "Service", "snigate/edge", json!({"type": "LoadBalancer"}));
    let objects = |balancer: &Value, requested: Value| [class(), with_addresses("ns/gw", requested), balancer.clone()];
    let plan = |objects: &[Value]| plan_with(objects, &options);
    let pending = ["Accepted True Accepted", "Programmed False AddressNotAssigned"];
    assert_eq!(outcome(&plan(&objects(&balancer, json!([])))).0, pending);
    assert_eq!(outcome(&plan(&[class(), gateway("ns/gw", &["tls 443"])])).0, pending, "the Service does not exist");

    balancer["status"] =
        json!({"loadBalancer": {"ingress": [{"ip": "198.51.100.1"}, {"hostname": "edge.example.com"}]}});
    let (all, hostname) =
        (outcome(&plan(&objects(&balancer, json!([])))), json!({"type": "Hostname", "value": "edge.example.com"}));
    let ip = json!({"type": "IPAddress", "value": "198.51.100.1"});
    assert_eq!((&all.0[..], all.1), (&PROGRAMMED.map(String::from)[..], json!([ip, hostname])));

    let one = plan(&objects(&balancer, json!([{"value": "198.51.100.1"}])));
    assert_eq!((&outcome(&one).0[..], outcome(&one).1), (&PROGRAMMED.map(String::from)[..], json!([ip])));
    assert_eq!(one.routing.listeners, [EVERYWHERE.parse().unwrap()], "the balancer's address is not on this machine");
    let other = plan(&objects(&balancer, json!([{"value": "198.51.100.2"}])));
    assert_eq!(outcome(&other).0, ["Accepted True Accepted", "Programmed False AddressNotUsable"]);
    assert!(other.routing.listeners.is_empty());
}

#[test]
fn published_addresses_are_those_given() {
    let addresses = vec![PublishedAddress::Hostname("edge.example.com".into())];
    let options = Options { publish: Publish::Addresses(addresses), ..Options::default() };
    let plan = plan_with(&[class(), gateway("ns/gw", &["tls 443"])], &options);
    assert_eq!(outcome(&plan).1, json!([{"type": "Hostname", "value": "edge.example.com"}]));
}

#[test]
fn a_port_that_is_taken_costs_that_listener_only() {
    let base = ["127.0.0.1:443".parse().unwrap()];
    let objects = [class(), gateway("ns/gw", &["tls 443", "other 8443"])];
    let plan = translate(&snapshot(&objects), &Options::default(), &base);
    assert_eq!(listener_reasons(&plan, "ns/gw", "tls")[0], "Accepted False PortUnavailable");
    assert_eq!(listener_reasons(&plan, "ns/gw", "other")[0], "Accepted True Accepted");
    assert_eq!(plan.routing.listeners, ["[::]:8443".parse().unwrap()]);

    let plan = super::plan(&objects);
    let failed = [(EVERYWHERE.parse().unwrap(), "another process is listening on it".to_owned())].into();
    let wanted = &plan.statuses.gateways[&Key::new("ns", "gw")];
    let applied = Applied { failed, ..applied() };
    let status = status::gateway(&Value::Null, wanted, &plan.statuses.published, &applied, NOW).unwrap();
    assert_eq!(reasons(&status["conditions"]), ["Accepted True ListenersNotValid", "Programmed True Programmed"]);
    let listeners = [0, 1].map(|index| reasons(&status["listeners"][index]["conditions"])[0].clone());
    assert_eq!(listeners, ["Accepted False PortUnavailable", "Accepted True Accepted"]);
}

#[test]
fn an_address_and_all_addresses_exclude_each_other_at_one_port() {
    let one = json!([{"value": "192.0.2.1"}]);
    for (first, refused) in [("01:00", "ns/all"), ("03:00", "ns/gw")] {
        let objects = [
            class(),
            created(with_addresses("ns/gw", one.clone()), first),
            created(with_addresses("ns/all", json!([])), "02:00"),
        ];
        let plan = plan(&objects);
        assert_eq!(listener_reasons(&plan, refused, "tls")[0], "Accepted False PortUnavailable");
        assert_eq!(plan.routing.listeners.len(), 1);
    }
}
