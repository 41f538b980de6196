//! How clients that are not served are told.

use std::io::Write;

use crate::support::client::{End, alert};
use crate::support::{Backend, Client, Hello, Router};

fn refusing(how: &str) -> Router {
    let upstream = Backend::echo().address();
    Router::start(&format!(
        "listen: 127.0.0.1:0\nrefuse: {how}\nroutes:\n  - {{sni: a.example, upstream: \"{upstream}\"}}\n"
    ))
}

#[test]
fn refuses_as_configured() {
    let unknown = Hello::to("b.example").record();
    for (how, bytes, expected) in [
        ("alert", &unknown[..], (alert(112), End::Fin)),
        ("alert", b"GET / HTTP/1.1\r\n\r\n", (Vec::new(), End::Fin)),
        ("close", &unknown, (Vec::new(), End::Fin)),
        ("reset", &unknown, (Vec::new(), End::Reset)),
        ("reset", b"GET / HTTP/1.1\r\n\r\n", (Vec::new(), End::Reset)),
    ] {
        let router = refusing(how);
        assert_eq!(Client::send(router.address(), bytes).rest(), expected, "{how}");
    }
}

#[test]
fn a_listener_may_refuse_in_its_own_way() {
    let upstream = Backend::echo().address();
    let router = Router::start(&format!(
        "listen:
  - {{name: quiet, address: 127.0.0.1:0}}
  - {{name: loud, address: 127.0.0.1:0, refuse: alert}}
refuse: close
routes:
  - {{sni: a.example, upstream: \"{upstream}\"}}
"
    ));
    for (name, expected) in [("quiet", Vec::new()), ("loud", alert(112))] {
        let address = router.address_of(|listener| listener == name);
        assert_eq!(Client::send(address, &Hello::to("b.example").record()).rest(), (expected, End::Fin));
    }
}

#[test]
fn d20_the_alert_arrives_while_the_client_still_sends() {
    let router = refusing("alert");
    let flight = [Hello::to("b.example").record(), vec![0x17; 20_000]].concat();
    for round in 0..1000 {
        let mut client = Client::connect(router.address());
        let _ = client.stream.write_all(&flight);
        let received = client.read(7);
        assert_eq!(received, alert(112), "round {round}");
    }
}
