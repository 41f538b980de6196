//! Who goes where.

use crate::support::{Backend, Client, Hello, Router, tls};

fn answer(router: std::net::SocketAddr, hello: &Hello) -> String {
    let mut client = Client::send(router, &hello.record());
    client.finish();
    String::from_utf8(client.rest().0).unwrap()
}

#[test]
fn e14_the_most_specific_name_wins_whatever_the_order() {
    let backends = ["exact", "deep", "shallow", "rest"].map(Backend::named);
    let mut routes: Vec<(&str, _)> = ["a.b.example", "*.b.example", "*.example", "*"]
        .into_iter()
        .zip(backends.iter().map(Backend::address))
        .collect();
    for _ in 0..2 {
        routes.reverse();
        let router = Router::routing(&routes);
        for (name, expected) in [
            ("a.b.example", "exact"),
            ("x.b.example", "deep"),
            ("x.y.b.example", "deep"),
            ("b.example", "shallow"),
            ("example", "rest"),
            ("other", "rest"),
        ] {
            assert_eq!(answer(router.address(), &Hello::to(name)), expected, "{name}");
        }
        assert_eq!(answer(router.address(), &Hello::new()), "rest");
    }
}

#[test]
fn routes_by_alpn_and_by_listener() {
    let [plain, h2, inside] = ["plain", "h2", "inside"].map(Backend::named);
    let config = format!(
        "listen:
  - {{name: outside, address: 127.0.0.1:0}}
  - {{name: inside, address: \"[::1]:0\"}}
routes:
  - {{name: plain, sni: a.example, upstream: \"{}\"}}
  - {{name: h2, sni: a.example, alpn: [h2, h3], upstream: \"{}\"}}
  - {{name: inside, sni: a.example, alpn: h2, listener: inside, upstream: \"{}\"}}
",
        plain.address(),
        h2.address(),
        inside.address()
    );
    let router = Router::start(&config);
    let outside = router.address_of(|name| name == "outside");
    let at_inside = router.address_of(|name| name == "inside");
    let hello = Hello::to("a.example");
    assert_eq!(answer(outside, &hello), "plain");
    assert_eq!(answer(outside, &hello.clone().alpn(&["http/1.1", "h2"])), "h2");
    assert_eq!(answer(at_inside, &hello.clone().alpn(&["h3"])), "h2");
    assert_eq!(answer(at_inside, &hello.clone().alpn(&["h2"])), "inside");
    assert_eq!(answer(at_inside, &hello), "plain");
}

#[test]
fn a_dual_stack_listener_shows_ipv4_clients_as_ipv4() {
    let backend = Backend::named("served");
    let config = format!("listen: \"[::]:0\"\nroutes:\n  - {{sni: a.example, upstream: \"{}\"}}\n", backend.address());
    let router = Router::start(&config);
    let port = router.address().port();
    for (host, logged) in [("127.0.0.1", "127.0.0.1"), ("::1", "::1")] {
        let address = (host.parse::<std::net::IpAddr>().unwrap(), port).into();
        let mut client = Client::send(address, &Hello::to("a.example").record());
        client.finish();
        assert_eq!(client.rest().0, b"served");
        assert_eq!(router.account_of(client.address())["client.address"], logged);
    }
}

#[test]
fn runs_without_a_file() {
    let [a, b] = ["a", "b"].map(Backend::named);
    let directory = tempfile::TempDir::new().unwrap();
    let mut command = crate::support::snigate();
    command.args(["run", "--listen", "127.0.0.1:0", "--listen", "[::1]:0", "--log-format", "json"]);
    command.args(["--route", &format!("*.a.example={}", a.address()), "--default", &b.address().to_string()]);
    let router = Router::spawn(command, directory.path().into(), directory);
    for host in ["127.0.0.1:0", "[::1]:0"] {
        let address = router.address_of(|name| name == host);
        assert_eq!(answer(address, &Hello::to("x.a.example")), "a");
        assert_eq!(answer(address, &Hello::to("other")), "b");
        assert_eq!(answer(address, &Hello::new()), "b");
    }
}

#[test]
fn each_client_sees_its_own_clusters_certificate() {
    let (first, second) = (tls::Authority::new(), tls::Authority::new());
    let user = second.issue("jane");
    let (one, two) = (tls::serve(&first, "one.example", false), tls::serve(&second, "two.example", true));
    let router = Router::routing(&[("one.example", one.address()), ("two.example", two.address())]);
    let get = |authority, name, identity| tls::get(router.address(), authority, name, identity);

    assert_eq!(get(&first, "one.example", None).unwrap(), "{\"gitVersion\":\"one.example\"}");
    assert_eq!(get(&second, "two.example", Some(&user)).unwrap(), "{\"gitVersion\":\"two.example\"}");
    let error = get(&second, "two.example", None).unwrap_err();
    assert!(error.contains("CertificateRequired"), "the server's alert, not ours: {error}");
    let error = get(&second, "one.example", None).unwrap_err();
    assert!(error.contains("invalid peer certificate"), "{error}");
    let error = get(&first, "three.example", None).unwrap_err();
    assert!(error.contains("UnrecognisedName"), "{error}");
}
